"""The one exception that means: the input is at fault, not the program."""


class UserError(ValueError):
  """Bad input, told in one line: what and where, what was expected, what to do.

  Command lines print the message and exit with code 1, without a traceback.
  """
