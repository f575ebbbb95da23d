"""Files of weights that engines read: shared by all of one dtype, and int8."""
