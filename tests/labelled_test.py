"""Which splits of a labelled study are asked for."""

import pytest

from rcm_jax.data import labelled
from tfds_rcm.errors import UserError


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("all", ("train", "validation", "test")),
    (" test, train,test,", ("test", "train")),
    ("test,all", ("train", "validation", "test")),
  ],
)
def test_splits_are_named_once_each(text, expected):
  assert labelled.parse_splits(text) == expected


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("test,tran", "'tran' is none of all, train, validation, test; did you mean 'train'?"),
    (" , ", "names no split; give all or some of train, validation, test"),
  ],
)
def test_other_words_are_told(text, message):
  with pytest.raises(UserError, match=message):
    labelled.parse_splits(text)
