"""SPICE's jar on a new Java, with its parser replaced; and every way in which it can fail.

The models of the real parser are too large for a test. What runs here is the original program from reading captions to
writing scores, synonyms included; a stand-in makes each word an object of the scene.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from programs import java_stand_in

from captune.errors import ExternalToolError, MetricInputError
from captune.metrics.external import spice as spice_module
from captune.metrics.external.corenlp import JARS
from captune.metrics.external.spice import STAND_IN, spice

has_jars = importlib.util.find_spec("pycocoevalcap") is not None
needs_jars = pytest.mark.skipif(not has_jars, reason="needs the extra 'java'")

PARSER = """
package edu.anu.spice;
import java.net.URL;
import java.util.*;
import edu.cmu.meteor.aligner.SynonymDictionary;
import edu.cmu.meteor.util.Constants;
public class SpiceParser {
  private final SynonymDictionary synonyms;
  public SpiceParser(String cache, int threads, Boolean merge) throws java.io.IOException {
    if (cache != null) new LmdbTupleDB(cache).putTransaction(new HashMap<>());
    String base = Constants.DEFAULT_SYN_DIR_URL.toString();
    synonyms = new SynonymDictionary(new URL(base + "/english.exceptions"), new URL(base + "/english.synsets"),
        new URL(base + "/english.relations"));
  }
  public List<SceneGraph> parseCaptions(List<String> captions) {
    return parseCaptions(captions, Collections.nCopies(captions.size(), 1));
  }
  public List<SceneGraph> parseCaptions(List<String> captions, List<Integer> counts) {
    List<SceneGraph> graphs = new ArrayList<>();
    Iterator<String> next = captions.iterator();
    for (int count : counts) {
      SceneGraph graph = new SceneGraph(synonyms, true);
      for (int i = 0; i < count; i++) for (String word : next.next().split(" ")) graph.addObject(word);
      graphs.add(graph);
    }
    return graphs;
  }
}
"""


def models(folder: Path) -> Path:
    """A folder with two files under the names of the jars."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in JARS:
        (folder / name).write_bytes(b"")
    return folder


def stand_in(folder: Path, body: str) -> Path:
    """A `java` that runs `body` with the paths `source` and `target`."""
    return java_stand_in(
        folder,
        "target = sys.argv[sys.argv.index('-out') + 1]; source = sys.argv[sys.argv.index('-out') - 1]\n"
        "questions = json.load(open(source))\n"
        "def answer(images, **more):\n"
        "    kinds = ['All', 'Object', 'Attribute', 'Relation', 'Cardinality', 'Color', 'Size']\n"
        "    scores = {kind: {'f': 0.5 if kind == 'All' else None} for kind in kinds}\n"
        "    json.dump([{'image_id': i, 'scores': scores} for i in images], open(target, 'w'))\n" + body,
    )


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose classes stand in for CoreNLP, as far as the jars of pycocoevalcap do not have them."""
    if not has_jars or shutil.which("javac") is None:
        pytest.skip("needs the extra 'java' and a Java compiler")
    (location,) = importlib.util.find_spec("pycocoevalcap").submodule_search_locations  # type: ignore[union-attr]
    folder = tmp_path_factory.mktemp("java classes")
    source = folder / "SpiceParser.java"
    source.write_text(PARSER)
    jars = [f"{location}/tokenizer/stanford-corenlp-3.4.1.jar", f"{location}/spice/spice-1.0.jar"]
    command = ["javac", "--release", "8", "-nowarn", "-cp", ":".join(jars), "-d", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    models(folder)
    (folder / JARS[0]).unlink()
    (folder / JARS[0]).symlink_to(jars[0])
    return folder


@pytest.mark.parametrize("cached", [False, True])
def test_the_original_program_runs_on_this_java(
    parser: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    class_path = spice_module._class_path
    monkeypatch.setattr(spice_module, "_class_path", lambda program: f"{parser}:{class_path(program)}")
    predictions = ["dog runs grass", "", "cat", "café", "cafe"]
    references = [["dog on grass", "puppy runs"], ["sky"], ["blue sky"], ["café table"], ["coffeehouse"]]
    cache = tmp_path / "my cache" if cached else None
    result = spice(predictions, references, models=parser, cache=cache, memory="1G", timeout=120)
    assert result.per_image.tolist() == pytest.approx([3 / 4, 0.0, 0.0, 2 / 3, 1.0])
    assert result.corpus == pytest.approx(result.per_image.mean())
    assert result.categories["Object"][0] == pytest.approx(3 / 4)
    assert np.isnan(result.categories["Color"][0])


def test_the_compiled_class_is_the_source_next_to_it(tmp_path: Path) -> None:
    if shutil.which("javac") is None:
        pytest.skip("needs a Java compiler")
    command = ["javac", "--release", "8", "-nowarn", "-g:none", "-d", str(tmp_path), str(STAND_IN / "PlainJson.java")]
    subprocess.run(command, check=True, capture_output=True)
    shown = [
        subprocess.run(["javap", "-c", "-p", str(class_file)], check=True, capture_output=True).stdout
        for class_file in (tmp_path / "PlainJson.class", STAND_IN / "PlainJson.class")
    ]
    assert shown[0] == shown[1]
    assert b"eval" in shown[0]


@needs_jars
def test_answers_are_put_in_order(tmp_path: Path) -> None:
    java = stand_in(tmp_path, "answer(reversed([q['image_id'] for q in questions]))\n")
    result = spice(["a", " ", "c"], [["a"], ["b"], ["c"]], models=models(tmp_path / "m"), java=java, timeout=20)
    assert result.per_image.tolist() == [0.5, 0.0, 0.5]


@needs_jars
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("print('java.lang.OutOfMemoryError', file=sys.stderr); sys.exit(1)\n", "OutOfMemoryError"),
        ("", "without writing its scores"),
        ("open(target, 'w').write('[{')\n", "something else than JSON"),
        ("json.dump({'a': 1}, open(target, 'w'))\n", "form that is not known"),
        ("json.dump([{'image_id': 0}], open(target, 'w'))\n", "form that is not known"),
        ("answer([])\n", "scored 0 of 1"),
        ("answer([7])\n", "form that is not known"),
        ("answer([0, 0])\n", "scored 1 of 1"),
    ],
)
def test_failures_are_one_sentence(tmp_path: Path, body: str, message: str) -> None:
    java = stand_in(tmp_path, body)
    with pytest.raises(ExternalToolError, match=message):
        spice(["a"], [["a"]], models=models(tmp_path / "m"), java=java, timeout=20)


@needs_jars
def test_a_hanging_program_is_stopped(tmp_path: Path) -> None:
    java = stand_in(tmp_path, "time.sleep(60)\n")
    with pytest.raises(ExternalToolError, match=r"still running after 1 seconds"):
        spice(["a"], [["a"]], models=models(tmp_path / "m"), java=java, timeout=1)


@needs_jars
def test_captions_survive_the_way_to_java(tmp_path: Path) -> None:
    note = tmp_path / "seen.json"
    java = stand_in(tmp_path, f"json.dump([questions, sys.argv], open({str(note)!r}, 'w')); answer([0])\n")
    caption = 'a "dog" \\ 狗 \U0001f600 \n x'
    spice([caption], [["r", caption]], models=models(tmp_path / "with space"), java=java, timeout=20, threads=2)
    questions, arguments = json.loads(note.read_text())
    assert questions == [{"image_id": 0, "test": caption, "refs": ["r", caption]}]
    assert arguments[-2:] == ["-threads", "2"]
    assert "--add-opens" in arguments


def test_without_models_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    if not has_jars:
        pytest.skip("needs the extra 'java'")
    with pytest.raises(MetricInputError, match=r"captune fetch spice.*--spice-models"):
        spice(["a"], [["a"]], models=tmp_path)


def test_bad_input_is_refused() -> None:
    with pytest.raises(MetricInputError, match="0 predictions for 1 images"):
        spice([], [["a"]])
    with pytest.raises(MetricInputError, match="at least one reference"):
        spice(["a"], [[]])


def test_nothing_to_ask_needs_no_java() -> None:
    assert spice(["", " "], [["a"], ["b"]], models="/nowhere").per_image.tolist() == [0.0, 0.0]
    assert spice([], []).corpus == 0.0
