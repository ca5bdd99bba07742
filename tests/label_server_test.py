"""The label page's server answers this machine's own page, and nobody else."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
from pathlib import Path
import re
import socket
import threading

import pytest
import uvicorn

from tests import label_journal_test, studies
from tfds_rcm import label
from tfds_rcm.labelling import command, server

TOKEN = "secret-token"


def options(study: Path, reader: str = "ann", **given):
  defaults = {
    "source": study, "reader": reader, "predictions": None, "order": "shuffled", "repeats": 0.5, "seed": 0,
    "corneum": False, "adjudicate": False, "step_um": None, "pixel_um": None, "port": 0,
  }  # fmt: skip
  return argparse.Namespace(**defaults | given)


@contextlib.contextmanager
def serving(study: Path, reader: str = "ann", **given):
  """The port of a server in this process, and its session."""
  with command.opened(options(study, reader, **given)) as session:
    listener = server.listen()
    port = listener.getsockname()[1]
    config = uvicorn.Config(
      server.make_app(session, port, TOKEN), log_level="error", lifespan="off", ws="none"
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
      yield Client(port), session
    finally:
      running.should_exit = True
      thread.join()
      listener.close()


class Client:
  def __init__(self, port):
    self.port = port

  def __call__(self, path, body=None, prefix=f"/{TOKEN}/", method=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
    method = method or ("GET" if body is None else "POST")
    given = {"Host": f"127.0.0.1:{self.port}"}
    if body is not None:
      given["Content-Type"] = "application/json"
      body = body if isinstance(body, bytes) else json.dumps(body).encode()
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest(method, prefix + path, skip_host=True)
    for name, value in given.items():
      connection.putheader(name, value)
    if body is not None:
      connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    reply = connection.getresponse()
    data = reply.read()
    connection.close()
    is_json = reply.headers.get_content_type() == "application/json"
    return reply.status, json.loads(data) if is_json else data, reply.headers


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  folder = studies.write_study(tmp_path_factory.mktemp("server") / "study", num_stacks=4)
  (folder / "labels.csv").unlink()
  return folder


@pytest.fixture(scope="module")
def client(study):
  with serving(study, "reader") as (found, _):
    yield found


def test_it_listens_on_this_machine_alone():
  with contextlib.closing(server.listen()) as listener:
    assert listener.getsockname()[0] == "127.0.0.1"
    port = listener.getsockname()[1]
    with contextlib.closing(socket.socket()) as other:
      other.settimeout(2)
      assert other.connect_ex(("127.0.0.2", port)) != 0


@pytest.mark.parametrize(
  "headers",
  [
    {"Host": "evil.example"},
    {"Host": "127.0.0.1"},
    {"Host": "127.0.0.1:1"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "https://127.0.0.1"},
    {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "cors"},
    {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "no-cors"},
  ],
)
@pytest.mark.parametrize("body", [None, {"revision": 0, "answer": {}}])
def test_other_sites_are_refused(client, headers, body):
  path = "overview" if body is None else "task/0/answer"
  assert client(path, body, **headers)[0] == 403


def test_a_form_of_another_site_cannot_post(client):
  assert client("task/0/answer", {"answer": {}}, Content_Type="text/plain")[0] == 415
  headers = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
  assert client("task/0/answer", {"answer": {}}, **headers)[0] == 403
  assert client("", **headers)[0] == 200  # a link on a report opens the page


@pytest.mark.parametrize(
  "prefix", ["/", "/wrong/", f"/{TOKEN}", f"/{TOKEN}x/", f"//{TOKEN}/", "/../"]
)
@pytest.mark.parametrize("path", ["", "overview", "task/0", "task/0/slice/0"])
def test_without_the_token_there_is_nothing(client, prefix, path):
  if prefix + path == f"/{TOKEN}":
    path = "x"
  status, body, _ = client(path, prefix=prefix)
  assert (status, body) == (404, b"not found")


def test_the_page_needs_nothing_from_elsewhere(client):
  status, body, headers = client("")
  text = body.decode()
  assert status == 200
  assert "{{" not in re.sub(r"\$\{\{", "", text)
  assert not re.search(r"(?:src|href)=[\"'](?!data:)", text)
  assert not re.search(r"https?://|@import|[^.]url\(", text)
  policy = headers["content-security-policy"]
  assert policy.startswith("default-src 'none'")
  assert "frame-ancestors 'none'" in policy
  assert headers["referrer-policy"] == "no-referrer"
  assert headers["cache-control"] == "no-store"
  nonce = re.search(r"script-src 'nonce-([^']+)'", policy)[1]
  assert text.count(f'nonce="{nonce}"') == 2
  assert nonce not in client("")[1].decode()


def test_the_page_learns_no_name(client, study):
  seen = json.dumps([client("overview")[1], *(client(f"task/{k}")[1] for k in range(6))])
  assert not re.search(r"p[0-2]\b|s[0-3]\b|VivaStack|arm|v0000", seen)
  status, body, headers = client("task/0/slice/2")
  assert (status, body[:4]) == (200, b"\x89PNG")
  assert "s0" not in str(headers)


def test_a_wrong_request_is_told_and_the_server_goes_on(client, capsys):
  assert client("task/99")[0] == 404
  assert client("task/0/slice/99")[0] == 404
  assert client("task/-1")[0] == 404
  assert client("nothing")[0] == 404
  assert client("find?stack=none")[0] == 404
  assert client("find")[0] == 404
  assert client("task/0/answer", b"{")[0] == 400
  assert client("task/0/answer", b"[]")[0] == 422
  assert client("task/0/answer", {"revision": 0, "answer": {"state": "done"}})[0] == 422
  assert client("task/0/answer", b" " * (2 << 20))[0] in (413,)
  assert client("task/0/answer", method="PUT", body={})[0] == 405
  assert client("task/0/prediction", {})[0] == 422
  assert "there is no prediction" in capsys.readouterr().err
  assert client("overview")[0] == 200


def test_answers_are_on_the_disk_when_the_reply_comes(study):
  done = {"state": "done", "starts": [0, 2, 4], "labels": None, "reason": "", "note": ""}
  with serving(study, "dora") as (call, session):
    number = call("find?stack=s1")[1]["number"]
    assert session.plan[number] == ("s1", 1)
    status, values, _ = call(f"task/{number}/answer", {"revision": 0, "answer": done})
    assert (status, values["revision"], values["state"]) == (200, 1, "done")
    text = (study / "labels" / "dora.csv").read_text()
    assert text.count("s1,dora,") == 6
    other = {**done, "starts": [0, 1, 4]}
    status, values, _ = call(f"task/{number}/answer", {"revision": 0, "answer": other})
    assert (status, values["answer"]["starts"]) == (409, [0, 2, 4])
    assert (study / "labels" / "dora.csv").read_text() == text


def test_predictions_come_only_on_request_which_is_noted_first(study, tmp_path):
  label_journal_test.prediction(tmp_path / "read" / "s2.json", "")
  label_journal_test.prediction(tmp_path / "read" / "s3.json", "", strata="eed")
  given = {"predictions": tmp_path / "read", "order": "uncertain"}
  with serving(study, "erin", **given) as (call, _):
    number = call("find?stack=s2")[1]["number"]
    task = call(f"task/{number}")[1]
    assert task["can_predict"] is True
    assert task["prediction"] is None
    values = call(f"task/{number}/prediction", {})[1]
    assert values["predictions"] == "before"
    assert values["prediction"]["labels"] == [1, 1, 2, 2, 3, 3]
    assert '"event":"predictions"' in (study / "labels" / "erin.log.jsonl").read_text()
    assert call(f"task/{number}")[1]["prediction"] is not None
    number = call("find?stack=s3")[1]["number"]
    assert call(f"task/{number}/prediction", {})[0] == 422  # of other slices


def test_a_third_reader_sees_the_others_where_they_differ(study):
  done = lambda *starts: {"state": "done", "starts": starts, "labels": None}
  for reader, edges in (("gus", (2, 4)), ("hal", (3, 4))):
    with serving(study, reader) as (call, _):
      for stack, edge in (("s0", edges), ("s1", (1, 2))):
        number = call(f"find?stack={stack}")[1]["number"]
        call(f"task/{number}/answer", {"revision": 0, "answer": done(0, *edge)})
  (study / "labels" / "dora.csv").unlink(missing_ok=True)
  (study / "labels" / "dora.log.jsonl").unlink(missing_ok=True)
  with serving(study, "ida", adjudicate=True) as (call, session):
    assert session.plan == [("s0", 1)]
    others = call("task/0")[1]["others"]
    assert [other["labels"] for other in others] == [[1, 1, 2, 2, 3, 3], [1, 1, 1, 2, 3, 3]]
    assert [other["name"] for other in others] == ["A", "B"]
    call("task/0/answer", {"revision": 0, "answer": done(0, 2, 4)})
  assert (study / "labels" / "adjudicated" / "ida.csv").read_text().count("s0") == 6
  code, error = run(study, "--reader=gus", "--adjudicate")
  assert code == 1
  assert "no third reader" in error


def run(study, *arguments):
  error = io.StringIO()
  with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
    code = label.main([f"--source={study}", "--no_browser", *arguments])
  [line] = error.getvalue().splitlines()
  assert line.startswith("error: ")
  return code, line


@pytest.mark.parametrize(
  ("arguments", "told"),
  [
    (["--reader=a/b"], "--reader"),
    (["--reader=x", "--repeats=2"], "--repeats"),
    (["--reader=x", "--order=uncertain"], "--predictions"),
    (["--reader=x", "--predictions=nowhere"], "no such folder"),
    (["--reader=x", "--step_um=-1"], "--step_um"),
    (["--reader=x", "--port=99999"], "--port"),
    (["--reader=x", "--source=nowhere"], "no such folder"),
  ],
)
def test_a_wrong_option_is_one_line(study, arguments, told):
  code, line = run(study, *arguments)
  assert code == 1
  assert told in line


def test_ctrl_c_ends_it_without_a_traceback(study, monkeypatch, capsys):
  def interrupted(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(server, "serve", interrupted)
  assert label.main([f"--source={study}", "--reader=kim", "--no_browser"]) == 0
  assert "goes on" in capsys.readouterr().out
  assert label.main([f"--source={study}", "--reader=kim", "--no_browser"]) == 0  # the lock is free


def test_missing_libraries_are_one_line(study, monkeypatch):
  def missing(name):
    raise ImportError("No module named 'starlette'", name="starlette")

  monkeypatch.setattr(label.importlib, "import_module", missing)
  assert "rcm-jax[label]" in run(study, "--reader=x")[1]
