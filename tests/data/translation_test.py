"""What one vocabulary wrote is what another reads."""

import numpy as np
import pytest

from alignment.data import pairs, toy, vocabularies
from alignment.data.translation import Translation, prompt_text, texts
from alignment.types import UserError
from tests import tiny_tokenizer

WORDS = vocabularies.WordVocabulary(toy.words(6))
BYTES = vocabularies.ByteVocabulary()


def batch(vocabulary, *rows, prompt_length=6, response_length=6):
  """Rows of (prompt, response, other); a response that begins with ~ is cut off."""

  def response(text):
    ids = vocabulary.response("", text.removeprefix("~"))
    return ids[:-1] if text.startswith("~") else ids

  def ragged(lists):
    writer = pairs.RaggedWriter()
    for ids in lists:
      writer.append(ids)
    return writer.finish()

  prompts, first, second = zip(*rows, strict=True)
  dataset = pairs.PairDataset(
    ragged(map(vocabulary.prompt, prompts)),
    (ragged(map(response, first)), ragged(map(response, second))),
  )
  return dataset.batch(np.arange(len(rows)), prompt_length, response_length)


ROWS = ("BA BE BI", "ba be", "~bi"), ("BO DA", "", "bo bo da")


def test_the_same_vocabulary_again_changes_nothing():
  same = Translation(WORDS, vocabularies.WordVocabulary(toy.words(6)), 6, 6, "left")
  original = batch(WORDS, *ROWS)
  translated = same.batch(original)
  for name, array in vars(original).items():
    np.testing.assert_array_equal(array, getattr(translated, name), err_msg=name)


def test_words_become_the_bytes_that_the_text_has():
  translated = Translation(WORDS, BYTES, 9, 9, "left").batch(batch(WORDS, *ROWS))
  direct = batch(BYTES, *ROWS, prompt_length=9, response_length=9)
  for name, array in vars(direct).items():
    np.testing.assert_array_equal(array, getattr(translated, name), err_msg=name)
  assert texts(BYTES, translated) == texts(WORDS, batch(WORDS, *ROWS))


def test_what_is_too_long_is_cut_and_has_no_end():
  row = "BA BE BI", "ba be bi", "~ba"
  cut = Translation(WORDS, BYTES, 5, 4, "right").batch(batch(WORDS, row))
  assert texts(BYTES, cut) == [("BA B", ["ba b", "ba"])]
  assert cut.lengths_BxN.tolist() == [[4, 2]]
  assert vocabularies.EOS_ID not in cut.responses_BxNxT
  left = Translation(WORDS, BYTES, 5, 4, "left").batch(batch(WORDS, row))
  assert texts(BYTES, left)[0][0] == "E BI"


def test_what_a_policy_may_write_is_never_refused():
  lacking = Translation(BYTES, WORDS, 6, 6, "left")
  assert lacking.response("", BYTES.response("", "ba <A> xyz")) == [
    *WORDS.encode("ba"), vocabularies.UNK_ID, vocabularies.UNK_ID, vocabularies.EOS_ID,
  ]  # fmt: skip
  forged = [3, 4, vocabularies.UNK_ID]  # the words' marks, which a policy can write
  again = Translation(WORDS, WORDS, 6, 6, "left").response("", forged)
  assert again == [vocabularies.UNK_ID] * 3


def test_a_prompt_that_the_judge_cannot_write_is_named():
  prompts = batch(BYTES, ("no words", "ba", "be"), prompt_length=20)
  with pytest.raises(UserError, match="prompt 0, for the judge: unknown word 'no'"):
    Translation(BYTES, WORDS, 6, 6, "left").batch(prompts)


def test_a_chat_is_read_as_its_template_shows_it(tmp_path):
  tiny_tokenizer.write(tmp_path, "chatml")
  chat = vocabularies.HuggingFaceVocabulary(tmp_path)
  ids = chat.prompt("\n\nHuman: Hi\n\nAssistant:")
  assert "Hi<|im_end|>" in prompt_text(chat, ids)
  # To another vocabulary these marks are letters.
  read = Translation(chat, BYTES, 100, 100, "left").prompt(prompt_text(chat, ids))
  assert BYTES.decode_prompt(read.ids) == prompt_text(chat, ids)


def test_what_every_prompt_begins_with_is_no_text(tmp_path):
  tokenizer = tiny_tokenizer.tokenizer_json(bos="<bos>")
  tiny_tokenizer.write(tmp_path, tokenizer=tokenizer, bos_token="<bos>")
  begun = vocabularies.HuggingFaceVocabulary(tmp_path)
  ids = begun.prompt("the cat")
  assert begun.decode_prompt(ids) == "<bos>the cat"
  assert prompt_text(begun, ids) == "the cat"
  assert prompt_text(begun, ids[1:]) == "the cat"
