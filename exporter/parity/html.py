FILE_NAME = "parity.html"


def render(report):
    return "<html></html>"
