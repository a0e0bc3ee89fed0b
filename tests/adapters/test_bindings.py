"""Bindings to engines: how they begin and end."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from ycore_adapters.engines import Binding, Engine, EngineError, bind

from ycore import LocalProtocolError, StructStore
from ycore.doc import Doc, XmlHook


def pycrdt_doc() -> Any:
    return pytest.importorskip("pycrdt", reason="needs pycrdt").Doc()


def ypy_doc() -> Any:
    pytest.importorskip("y_py", reason="needs y_py, which has no wheel for Python 3.13 and later")
    from ycore_adapters.engines.ypy import YDoc  # noqa: PLC0415

    return YDoc()


def read(ydoc: Any) -> str:
    if hasattr(ydoc, "begin_transaction"):
        return str(ydoc.get_text("t"))
    import pycrdt  # noqa: PLC0415

    return str(ydoc.get("t", type=pycrdt.Text))


def write(ydoc: Any, text: str) -> None:
    if hasattr(ydoc, "begin_transaction"):
        with ydoc.begin_transaction() as transaction:
            ydoc.get_text("t").extend(transaction, text)
    else:
        import pycrdt  # noqa: PLC0415

        ydoc.get("t", type=pycrdt.Text).insert(len(read(ydoc)), text)


@pytest.fixture(params=[pycrdt_doc, ypy_doc])
def make(request: pytest.FixtureRequest, ydocs_end_here: None) -> Callable[[], Any]:
    made: Callable[[], Any] = request.param
    made()
    return made


def test_each_has_what_the_other_had_and_gets(make: Callable[[], Any]) -> None:
    doc, ydoc = Doc(), make()
    write(ydoc, "theirs")
    doc.get_text("o").insert(0, "ours")
    told: list[object] = []
    doc.observe_updates(lambda _, origin: told.append(origin))
    binding = bind(doc, ydoc)
    assert doc.to_json() == {"o": "ours", "t": "theirs"}
    write(ydoc, "!")
    doc.get_text("t").insert(0, "not ")
    assert doc.to_json()["t"] == read(ydoc) == "not theirs!"
    assert told == [binding, binding, None]
    binding.close()
    binding.close()
    write(ydoc, "?")
    doc.get_text("t").insert(0, "is ")
    assert (read(ydoc), doc.to_json()["t"]) == ("not theirs!?", "is not theirs!")


def test_two_engines_of_one_document(make: Callable[[], Any]) -> None:
    doc, one, two = Doc(), make(), make()
    bind(doc, one)
    bind(doc, two)
    write(one, "a")
    assert read(two) == "a"


def test_it_ends_with_an_error_and_begins_anew(
    make: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    doc = Doc()
    doc.get_text("t").insert(0, "😀")
    ended: list[EngineError] = []
    first, second, third = make(), make(), make()

    def again(error: EngineError) -> None:
        ended.append(error)
        bind(doc, second)
        raise ValueError("and then this")

    binding = bind(doc, first, again)
    doc.apply(bytes.fromhex("0001") + _id(doc) + b"\x01\x01\x01")  # half of it
    assert binding.is_closed
    assert binding.error is ended[0]
    assert "on_end failed" in caplog.text
    doc.get_text("t").insert(0, "on ")
    assert read(second) == doc.to_json()["t"] == "on \ufffd"
    assert read(first) == "😀"
    doc.get_xml_fragment("x").append(XmlHook("h"))
    assert "XML hook" in caplog.text
    with pytest.raises(EngineError, match="XML hook"):
        bind(doc, third)


def _id(doc: Doc) -> bytes:
    from ycore.lib0 import write_var_uint  # noqa: PLC0415

    out = bytearray()
    write_var_uint(out, doc.client_id)
    return bytes(out)


def test_the_engine_does_not_keep_the_document(make: Callable[[], Any]) -> None:
    doc, ydoc = Doc(), make()
    gone = weakref.ref(bind(doc, ydoc))
    del doc
    gc.collect()
    assert gone() is None
    write(ydoc, "to nobody")


class Fails(Engine):
    """An engine that does what it is told."""

    def __init__(self) -> None:
        self.answer: BaseException | bytes = b"\0\0"
        self.applied: list[bytes] = []
        self.told: Callable[[bytes], None] = lambda update: None

    def encode_state_vector(self) -> bytes:
        return b"\0"

    def encode(self, state_vector: bytes) -> bytes:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def apply(self, update: bytes) -> None:
        if isinstance(self.answer, BaseException):
            raise self.answer
        self.applied.append(update)

    def observe(self, callback: Callable[[bytes], None]) -> Callable[[], None]:
        self.told = callback
        return lambda: None


class Panic(BaseException):
    """As y-py's and pycrdt's."""


def test_whatever_an_engine_raises_the_document_goes_on() -> None:
    doc, engine = Doc(), Fails()
    engine.answer = Panic("at once")
    with pytest.raises(EngineError, match="Panic: at once"):
        bind(doc, engine)
    engine.answer = b"\1"
    with pytest.raises(EngineError, match="malformed"):
        bind(doc, engine)
    engine.answer = b"\0\0"
    ended: list[EngineError] = []
    binding = bind(doc, engine, ended.append)
    engine.answer = Panic("later")
    doc.get_text("t").insert(0, "a")
    assert [str(error) for error in ended] == ["the engine failed: Panic: later"]
    binding.sync()
    engine.answer = b"\0\0"
    ended.clear()
    bind(doc, engine, ended.append)
    engine.told(b"\1")
    assert "malformed" in str(ended)
    bind(doc, engine)
    engine.answer = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        doc.get_text("t").insert(0, "b")


def test_what_came_up_while_the_engine_was_at_work_comes_later(
    make: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    doc, ydoc = Doc(), make()
    binding = bind(doc, ydoc)

    def answer(_: bytes, origin: object) -> None:
        if isinstance(origin, Binding):
            doc.get_text("t").insert(0, "seen ")
            raise ValueError("an observer's own")

    doc.observe_updates(answer)
    write(ydoc, "a")
    assert "an observer of the document failed" in caplog.text
    assert doc.to_json() == {"t": "seen a"}
    assert read(ydoc) == "a"
    binding.sync()
    assert read(ydoc) == "seen a"
    assert not binding.is_closed


def test_observers_of_pycrdt_may_edit_the_document_and_raise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    doc, ydoc = Doc(), pycrdt_doc()
    import pycrdt  # noqa: PLC0415

    text = ydoc.get("t", type=pycrdt.Text)

    def answer(event: object) -> None:
        if len(doc.get_text("t")) < 3:
            doc.get_text("t").insert(0, "x")
            raise ValueError("an observer's own")

    binding = bind(doc, ydoc)
    text.observe(answer)
    caplog.set_level(logging.ERROR)
    doc.get_text("t").insert(0, "a")
    binding.sync()
    assert not binding.is_closed
    assert doc.to_json()["t"] == str(text)


def test_only_documents_of_engines_can_be_bound() -> None:
    for other in (object(), Doc()):
        with pytest.raises(LocalProtocolError, match="can't bind"):
            bind(Doc(), other)
    with pytest.raises(LocalProtocolError, match="view"):
        bind(Doc.view(StructStore()), Fails())


def test_a_ypy_document_needs_the_right_settings() -> None:
    ypy_doc()
    import y_py  # noqa: PLC0415

    with pytest.raises(LocalProtocolError, match="right settings"):
        bind(Doc(), y_py.YDoc())


WORDS = ["héllo wörld", "漢字", "a😀b", "plain", "e\u0301\n"]


def bytes_of(text: str, at: int) -> int:
    """A place in a text as pycrdt counts it."""
    return len(text[:at].encode())


def test_pycrdt_goes_on_beyond_ascii() -> None:
    pycrdt = pytest.importorskip("pycrdt", reason="needs pycrdt")
    doc, ydoc = Doc(), pycrdt.Doc(skip_gc=True)
    ended: list[EngineError] = []
    bind(doc, ydoc, ended.append)
    text = ydoc.get("t", type=pycrdt.Text)
    for word in WORDS:
        for at in range(len(str(text)) + 1):
            text.insert(bytes_of(str(text), at), word)
            text.format(
                bytes_of(str(text), at), bytes_of(str(text), at + 2), {"b": at % 2 == 0 or None}
            )
            shown = str(text)
            del text[bytes_of(shown, at + 1) : bytes_of(shown, at + len(word))]
            assert str(text) == shown[: at + 1] + shown[at + len(word) :]
            assert doc.get_text("t").to_json() == str(text)
    assert not ended
    assert [
        (run["insert"], run.get("attributes")) for run in doc.get_text("t").to_delta()
    ] == text.diff()


@pytest.mark.parametrize("edit", ["insert", "format"])
@pytest.mark.parametrize("before", ["é", "a😀b", "漢字"])
def test_a_place_of_pycrdt_in_the_midst_of_a_character_ends_it(before: str, edit: str) -> None:
    pycrdt = pytest.importorskip("pycrdt", reason="needs pycrdt")
    doc, ydoc = Doc(), pycrdt.Doc(skip_gc=True)
    ended: list[EngineError] = []
    bind(doc, ydoc, ended.append)
    text = ydoc.get("t", type=pycrdt.Text)
    text.insert(0, before)
    midst = bytes_of(before, before.index(next(c for c in before if not c.isascii()))) + 1
    if edit == "insert":
        text.insert(midst, "x")
    else:
        text.format(midst, len(before.encode()), {"b": True})
    assert len(ended) == 1
    assert "not before its own" in str(ended[0])
    assert "in the midst of a character?" in str(ended[0])
    assert doc.to_json() == {"t": before}
    bind(doc, pycrdt.Doc(skip_gc=True))  # the document is as it was


def test_pycrdt_may_also_name_an_item_from_elsewhere() -> None:
    pycrdt = pytest.importorskip("pycrdt", reason="needs pycrdt")
    doc, ydoc = Doc(), pycrdt.Doc(skip_gc=True)
    ended: list[EngineError] = []
    bind(doc, ydoc, ended.append)
    text = ydoc.get("t", type=pycrdt.Text)
    text.insert(0, "é")
    text.insert(0, "a")
    text.insert(2, "x")
    assert [str(error) for error in ended] == [
        "since an edit in the engine: an item of it is not where its neighbours are. pycrdt counts "
        "places in a text in bytes of UTF-8: was one in the midst of a character?"
    ]


def test_ypy_goes_on_beyond_ascii(ydocs_end_here: None) -> None:
    doc, ydoc = Doc(), ypy_doc()
    ended: list[EngineError] = []
    bind(doc, ydoc, ended.append)
    text = ydoc.get_text("t")
    for word in WORDS:
        for at in range(len(str(text)) + 1):
            with ydoc.begin_transaction() as transaction:
                text.insert(transaction, at, word)
                text.format(transaction, at, 2, {"b": True})
            with ydoc.begin_transaction() as transaction:
                text.delete_range(transaction, at + 1, len(word) - 1)
            assert doc.get_text("t").to_json() == str(text)
    assert not ended
