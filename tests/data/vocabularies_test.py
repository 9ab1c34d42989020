"""Vocabularies: round trips, T5's layout, markers, and one-line errors."""

import json
import os
import types

import pytest
import sentencepiece
import tokenizers

from alignment.data import vocabularies
from alignment.data.chats import Conversation
from alignment.types import UserError

SENTENCE = "the cat sat on the mat and Response A: beat Response B: today"


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
  path = tmp_path_factory.mktemp("spm") / "tiny"
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([SENTENCE, "A cat", "B mat", "A", "B"] * 40),
    model_prefix=str(path),
    vocab_size=40,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  return f"{path}.model"


@pytest.fixture(params=["sentencepiece", "bytes", "words"])
def any_vocab(request, model_path):
  words = tuple(dict.fromkeys(SENTENCE.split()))
  cfg = types.SimpleNamespace(kind=request.param, path=model_path, words=words)
  return vocabularies.from_config(cfg)


def test_round_trip_without_specials(any_vocab):
  ids = any_vocab.encode(SENTENCE)
  assert any_vocab.decode(ids) == SENTENCE
  assert min(ids) > any_vocab.unk_id and max(ids) < any_vocab.size


def test_decode_stops_at_eos_and_skips_pad(any_vocab):
  ids = any_vocab.encode("the cat")
  assert any_vocab.decode([0, *ids, 0, 1, *ids, 2]) == "the cat"
  assert any_vocab.decode([]) == any_vocab.decode([1]) == ""


def test_decode_takes_every_live_id_and_no_other(any_vocab):
  for i in range(any_vocab.size):
    assert isinstance(any_vocab.decode([i]), str)
  assert any_vocab.decode(range(2, any_vocab.size))
  for i in (-1, any_vocab.size):
    with pytest.raises(ValueError, match="outside the vocabulary"):
      any_vocab.decode([i])


def test_judge_markers_tell_the_responses_apart(any_vocab):
  markers = any_vocab.judge_markers
  assert markers.before_first != markers.before_second
  assert markers.first_id != markers.second_id
  assert markers.end == (any_vocab.eos_id,)
  ids = markers.before_first + markers.before_second
  for i in (*ids, markers.first_id, markers.second_id):
    assert any_vocab.unk_id < i < any_vocab.size


def test_sentencepiece_layout(model_path):
  v = vocabularies.SentencePieceVocabulary(model_path)
  assert v.decode([v.size - 1]) == "<extra_id_0>"
  assert v.decode([v.size - 100]) == "<extra_id_99>"
  assert "extra" not in v.decode([v.size - 101])
  assert v.decode([v.size - 1, *v.encode("the cat")]) == "<extra_id_0> the cat"
  # Documented: white space folds into one space.
  assert v.decode(v.encode("the\n\ncat  sat\n")) == "the cat sat"


def test_sentinels_stand_in_for_unknown_letters(tmp_path):
  path = tmp_path / "lower"
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["the cat sat", "on the mat"] * 40),
    model_prefix=str(path),
    vocab_size=20,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  v = vocabularies.SentencePieceVocabulary(f"{path}.model")
  last = v.size - 1
  assert v.judge_markers == vocabularies.JudgeMarkers(
    (last,), (last - 1,), (1,), first_id=last, second_id=last - 1
  )


def test_damaged_sentencepiece_files(model_path, tmp_path):
  with pytest.raises(UserError, match=r"nowhere\.model: cannot read .*vocab\.path"):
    vocabularies.SentencePieceVocabulary("nowhere.model")
  with pytest.raises(UserError, match="cannot read"):
    vocabularies.SentencePieceVocabulary(tmp_path)
  with open(model_path, "rb") as f:
    model = f.read()
  path = tmp_path / "cut.model"
  # 0 and the end of the first piece (2 bytes of header + its length) parse as protobuf.
  for cut in (0, 1, 2 + model[1], len(model) // 2, len(model) - 1):
    path.write_bytes(model[:cut])
    with pytest.raises(UserError, match=r"cut\.model: not a SentencePiece model"):
      vocabularies.SentencePieceVocabulary(path)
  path.write_text("not a model")
  with pytest.raises(UserError, match="not a SentencePiece model"):
    vocabularies.SentencePieceVocabulary(path)


def test_sentencepiece_with_other_special_ids(tmp_path):
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([SENTENCE] * 40),
    model_prefix=str(tmp_path / "default"),
    vocab_size=40,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  with pytest.raises(UserError, match=r"\(pad, eos, unk\) ids are \(-1, 2, 0\)"):
    vocabularies.SentencePieceVocabulary(tmp_path / "default.model")


def test_bytes_are_byt5s():
  v = vocabularies.ByteVocabulary()
  assert v.size == 256 + 3 + 8
  assert v.encode("A\né") == [68, 13, 198, 172]
  assert v.decode(v.encode("A\né 雪\x00")) == "A\né 雪\x00"
  assert v.decode([198]) == v.decode([2]) == "\ufffd"  # half a character; unknown
  assert v.decode([259, 68]) == "<extra_id_0>A"


def test_words():
  v = vocabularies.WordVocabulary(("red", "blue"))
  assert v.size == 7 and v.encode(" blue\nred  blue ") == [6, 5, 6]
  assert v.decode([6, 2, 3, 1, 6]) == "blue <unk> <A>"
  for word in ("green", "<A>", "</s>", "<unk>"):
    with pytest.raises(UserError, match=f"unknown word '{word}'.*vocab.words"):
      v.encode(f"red {word}")


@pytest.mark.parametrize(
  "words", [("a", "a"), ("a b",), ("",), ("<pad>",), ("<A>",), (1,)]
)
def test_bad_word_lists(words):
  with pytest.raises(UserError, match="vocab.words has .*distinct"):
    vocabularies.WordVocabulary(words)


@pytest.mark.parametrize("words", [(), "ab"])
def test_no_word_list(words):
  with pytest.raises(UserError, match="vocab.words is .*at least one"):
    vocabularies.WordVocabulary(words)


def test_fingerprints_differ_with_the_map(model_path):
  prints = [
    vocabularies.SentencePieceVocabulary(model_path).fingerprint,
    vocabularies.ByteVocabulary().fingerprint,
    vocabularies.WordVocabulary(("a", "b")).fingerprint,
    vocabularies.WordVocabulary(("b", "a")).fingerprint,
    vocabularies.WordVocabulary(("a", "b", "c")).fingerprint,
  ]
  assert len(set(prints)) == len(prints)
  assert all(len(p) == 64 and int(p, 16) for p in prints)
  assert vocabularies.WordVocabulary(["a", "b"]).fingerprint == prints[2]


def test_from_config_errors():
  cfg = types.SimpleNamespace(kind="wordpiece", path="", words=())
  with pytest.raises(UserError, match="vocab.kind is 'wordpiece'; use"):
    vocabularies.from_config(cfg)
  cfg.kind = "sentencepiece"
  with pytest.raises(UserError, match="vocab.path is not set"):
    vocabularies.from_config(cfg)


@pytest.mark.skipif(
  "ALIGNMENT_T5_VOCAB" not in os.environ,
  reason="ALIGNMENT_T5_VOCAB does not name T5's spiece.model",
)
def test_t5s_own_model():
  v = vocabularies.SentencePieceVocabulary(os.environ["ALIGNMENT_T5_VOCAB"])
  assert v.size == 32100
  assert v.decode([32099, 32000]) == "<extra_id_0> <extra_id_99>"
  assert v.encode("Response A:") == [16361, 71, 10]
  assert v.judge_markers == vocabularies.JudgeMarkers(
    (16361, 71, 10), (16361, 272, 10), (1,), first_id=71, second_id=272
  )
  assert v.decode(v.encode("\n\nHuman: hi\n\nAssistant:")) == "Human: hi Assistant:"
  assert v.decode(range(2, v.size))


# --- prompts and responses ------------------------------------------------------------

ASKED = Conversation(
  ({"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"},
   {"role": "user", "content": "on the mat"})
)  # fmt: skip


@pytest.mark.parametrize("kind", ["sentencepiece", "bytes"])
def test_conversations_are_transcripts(kind, model_path):
  cfg = types.SimpleNamespace(kind=kind, path=model_path, words=())
  v = vocabularies.from_config(cfg)
  text = "\n\nHuman: the cat\n\nAssistant: sat\n\nHuman: on the mat\n\nAssistant:"
  assert v.prompt(ASKED) == v.prompt(text) == [*v.encode(text), 1]
  message = {"role": "assistant", "content": "today"}
  assert v.response(ASKED, "today") == v.response(text, message)
  assert v.response(ASKED, "today") == [*v.encode("today"), 1]
  with pytest.raises(UserError, match="field 'tool_calls'"):
    v.response(ASKED, message | {"tool_calls": [{}]})
  with pytest.raises(UserError, match="content must be text"):
    v.response(ASKED, message | {"content": None})


def test_prompts_are_cut_as_encoders_read_them(any_vocab):
  ids = any_vocab.encode("the cat sat on the mat and today")
  for limit in range(2, len(ids) + 3):
    for side in ("left", "right"):
      fitted = any_vocab.fit_prompt("the cat sat on the mat and today", limit, side)
      kept = ids[len(ids) + 1 - limit :] if side == "left" else ids[: limit - 1]
      assert fitted.ids == [*(ids if limit > len(ids) else kept), 1]
      assert len(fitted.whole) == len(ids) + 1 and fitted.messages_cut == 0
      assert fitted.text_cut == (limit < len(ids) + 1)
  with pytest.raises(UserError, match="prompt_length 0"):
    any_vocab.fit_prompt("the cat", 0, "left")


def test_special_ids_are_t5s(any_vocab):
  v = any_vocab
  assert (v.pad_id, v.eos_id, v.unk_id) == (0, 1, 2)
  assert v.ending_ids == (1,) and v.dead_ids == (0,)
  assert v.before_prompt == () and v.after_prompt == (1,)
  assert v.judge_markers.before_prompt == ()
  assert v.decode_prompt(v.prompt("the cat")) == "the cat"


def test_unknown_tokens_are_counted(model_path):
  v = vocabularies.SentencePieceVocabulary(model_path)
  ids = v.encode("the 天空 cat {")
  assert v.unknown(ids) == ids.count(2) == 2
  assert vocabularies.ByteVocabulary().unknown(v.encode("the cat")) == 0


def test_every_token_has_its_spelling(any_vocab):
  tokens = any_vocab.tokens()
  assert tokens["<pad>"] == 0 and tokens["</s>"] == 1 and tokens["<unk>"] == 2
  assert max(tokens.values()) == any_vocab.size - 1


def test_a_checkpoint_with_only_tokenizer_json(model_path, tmp_path):
  """T5's own, as the `tokenizers` library writes it: the same pieces and sentinels."""
  v = vocabularies.SentencePieceVocabulary(model_path)
  sentinels = [t for t in v.tokens() if t.startswith("<extra_id_")]
  pieces = sorted((set(v.tokens()) - set(sentinels)), key=v.tokens().get)
  theirs = tokenizers.Tokenizer(
    tokenizers.models.Unigram([(piece, -1.0) for piece in pieces], unk_id=2)
  )
  theirs.add_special_tokens(sentinels[::-1])
  path = tmp_path / "tokenizer.json"
  theirs.save(str(path))
  vocabularies.check_checkpoint(tmp_path, v)
  with pytest.raises(UserError, match=r"tokenizer\.json: .*set vocab\.path to "):
    vocabularies.check_checkpoint(tmp_path, vocabularies.ByteVocabulary())
  theirs.add_tokens(["<new>"])
  theirs.save(str(path))
  with pytest.raises(UserError, match=r"tokenizer\.json: .*not the study's"):
    vocabularies.check_checkpoint(tmp_path, v)
  path.write_text("{}")
  with pytest.raises(UserError, match="not a tokenizer, or damaged"):
    vocabularies.check_checkpoint(tmp_path, v)


def test_a_checkpoint_with_tokens_on_top(model_path, tmp_path):
  v = vocabularies.SentencePieceVocabulary(model_path)
  for name, content in v.files().items():
    (tmp_path / name).write_bytes(content)
  vocabularies.check_checkpoint(tmp_path, v)
  added = tmp_path / "added_tokens.json"
  added.write_text(json.dumps({"<extra_id_0>": v.size - 1}))
  vocabularies.check_checkpoint(tmp_path, v)
  added.write_text(json.dumps({"<sep>": v.size}))
  with pytest.raises(UserError, match=r"added_tokens\.json: .*not the study's"):
    vocabularies.check_checkpoint(tmp_path, v)
