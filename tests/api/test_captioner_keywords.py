"""`Captioner` from Python: decoding options as keywords, images of every kind, display, light and silent loading."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captune import Captioner
from captune.captioner import CaptionedImages
from captune.common import quiet_libraries
from captune.decoding import DecodingKeywords, DecodingOptions, with_keywords
from captune.errors import ConfigError, DataError
from captune.toy import draw_scene, sample_scenes


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return Captioner.from_pretrained("toy", device="cpu")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return draw_scene(next(sample_scenes(3, held_out=True))).resize((120, 90))


def test_keywords_are_the_fields_of_decoding_options() -> None:
    annotations = {field.name: field.type for field in fields(DecodingOptions)}
    assert DecodingKeywords.__annotations__.keys() == annotations.keys()
    assert {name: kind.__forward_arg__ for name, kind in DecodingKeywords.__annotations__.items()} == annotations


def test_keywords_win_over_options(captioner: Captioner, picture: Image.Image) -> None:
    short = captioner(picture, max_new_tokens=2)
    assert short == captioner(picture, options=DecodingOptions(max_new_tokens=2))
    assert short == captioner(picture, options=DecodingOptions(max_new_tokens=9), max_new_tokens=2)
    assert captioner(picture).startswith(short)
    assert captioner([picture, picture], max_new_tokens=2) == [short, short]
    assert "".join(captioner.stream(picture, max_new_tokens=2)) == short


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"beam": 3}, "There is no decoding option 'beam'; did you mean 'beams'?"),
        ({"zzz": 3}, "There is no decoding option 'zzz'; the options are max_new_tokens, beams,"),
        ({"beams": "3"}, "beams is '3'; expected an integer."),
        ({"beams": True}, "beams is True; expected an integer."),
        ({"top_p": None}, "top_p is None; expected a number."),
        ({"compiled": 1}, "compiled is 1; expected True or False."),
        ({"beams": 0}, "beams is 0; expected 1 or more."),
    ],
)
def test_wrong_keywords_are_refused_by_a_sentence(keywords: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_keywords(None, keywords)
    assert str(caught.value).startswith(sentence)


def test_numbers_may_be_integers() -> None:
    assert with_keywords(None, {"length_penalty": 1, "temperature": 2}) == DecodingOptions(temperature=2)


def test_images_of_every_kind_have_the_same_caption(captioner: Captioner, picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    picture.save(path)
    pixels = np.asarray(picture.convert("RGB"))
    kinds = [picture, pixels, path.read_bytes(), path, str(path)]
    assert len({captioner(kind, max_new_tokens=8) for kind in kinds}) == 1
    assert len({caption.text for caption in captioner.caption_files([str(path), path], max_new_tokens=8)}) == 1


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ("https://example.org/a.jpg", "'https://example.org/a.jpg' is a URL, and captune reads files; download"),
        (Path("http://example.org/a.jpg"), "'http:/example.org/a.jpg' is a URL"),
        (b"not an image", "cannot decode the image 'bytes': it is no image file that captune reads."),
        (None, "An image is a NoneType; expected a path,"),
        ([3], "An image is a int; expected a path,"),
    ],
)
def test_other_images_are_refused_by_a_sentence(captioner: Captioner, image: Any, sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        captioner(image)
    assert str(caught.value).startswith(sentence)


def test_repr_names_the_model(captioner: Captioner) -> None:
    assert repr(captioner) == "Captioner('toy', instruction='Describe this image in detail.')"


def test_show_displays_images_with_their_captions(captioner: Captioner, picture: Image.Image) -> None:
    shown = captioner.show([picture, picture], max_new_tokens=4)
    assert shown.captions == captioner([picture, picture], max_new_tokens=4)
    assert len(shown) == 2
    assert shown[1] == shown.captions[1]
    page = shown._repr_html_()
    assert page.count("data:image/jpeg;base64,") == 2
    assert page.count(f'<figcaption style="padding:.3em 0">{shown[0]}</figcaption>') == 2


def test_hostile_captions_and_names_are_escaped(picture: Image.Image, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>\"' onerror=x \x1b[31m\u202e"
    page = CaptionedImages([picture], [hostile])._repr_html_()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27; onerror=x \\x1b[31m\\u202e" in page
    path = tmp_path / "a.png"
    picture.save(path)
    assert repr(CaptionedImages([path, picture], ["one", "two"])) == f"{path}: one\ntwo"


def test_only_some_of_many_images_are_displayed(picture: Image.Image) -> None:
    page = CaptionedImages([picture] * 30, ["a dog"] * 30)._repr_html_()
    assert page.count("<figure") == 24
    assert "and 6 more, in <code>captions</code>" in page


def test_importing_the_captioner_imports_no_model_library() -> None:
    program = (
        "from captune import Captioner; import sys;"
        "print(*sorted({'torch', 'transformers', 'peft', 'torchao', 'huggingface_hub'} & set(sys.modules)))"
    )
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert completed.stdout.split() == []


def test_loading_and_captioning_print_nothing() -> None:
    program = (
        "import numpy as np; from captune import Captioner;"
        "[Captioner.from_pretrained(name)(np.zeros((40, 40, 3), np.uint8)) for name in ('toy', 'toy-vlm')];"
        "import os; assert 'TRANSFORMERS_VERBOSITY' not in os.environ;"
        "from transformers.utils import logging; assert logging.is_progress_bar_enabled()"
    )
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (completed.stdout, completed.stderr) == ("", "")


@pytest.mark.parametrize("names", ["captune.MiniGPT4", "captune.training.train, captune.evaluation.evaluate_models"])
def test_importing_what_needs_torch_prints_nothing(names: str) -> None:
    program = f"import captune, captune.training, captune.evaluation; {names}"
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (completed.stdout, completed.stderr) == ("", "")


def test_quiet_libraries_hides_and_restores(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("torchao")
    handler = logging.StreamHandler(stream := io.StringIO())
    log.addHandler(handler)
    with warnings.catch_warnings():
        warnings.resetwarnings()
        with quiet_libraries():
            warnings.warn("noise", FutureWarning, stacklevel=1)
            log.warning("noise")
        log.warning("heard")
        with pytest.warns(FutureWarning, match="heard"):
            warnings.warn("heard", FutureWarning, stacklevel=1)
        warnings.simplefilter("error")
        with pytest.raises(FutureWarning), quiet_libraries():
            warnings.warn("the program's filter", FutureWarning, stacklevel=1)
    log.removeHandler(handler)
    assert stream.getvalue() == "heard\n"
    assert capsys.readouterr().err == ""
