"""What is shown: the report as JSON, HTML, JUnit, and on a terminal."""
