"""Opening files: real video files only, and one clear sentence for everything else."""

import io
import socket
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from sttm.data.video.container import OpenFile
from sttm.data.video.read import Sampling, probe, read
from sttm.data.video.video import VIDEO_SUFFIXES
from sttm.errors import SttmError
from tests.data.helpers import (
    write_video,
)

#: 35 bytes that claim a picture of 12,000 x 12,000 pixels.
HUGE_GIF = bytes.fromhex("474946383961 e02ee02e 800000 000000 ffffff 2c 00000000 e02ee02e 00 02 02 4401 00 3b")


@pytest.mark.parametrize("suffix", [".m3u8", ".mp4"])
def test_a_playlist_on_disk_opens_no_other_file(tmp_path, suffix):
    video = write_video(tmp_path / "other.ts", 20)
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:10", "#EXTINF:1,", f"file://{video}", "#EXT-X-ENDLIST", ""]
    (path := tmp_path / f"list{suffix}").write_text("\n".join(lines))
    for look in (probe, lambda p: read(p, Sampling(2))):
        with pytest.raises(SttmError, match=r"is a playlist, not a video; give the video files that it names$"):
            look(path)


@pytest.mark.parametrize("suffix", [".m3u8", ".mp4", ".ts", ".avi"])
@pytest.mark.parametrize("kind", ["hls", "ffconcat", "numbered"])
def test_no_neighbour_and_no_server_is_read(tmp_path, suffix, kind):
    """Whatever a file is called: a list that names others, on disk and by http, is no video."""
    Image.new("RGB", (32, 32)).save(tmp_path / "img_001.png")
    write_video(tmp_path / "other.ts", 20)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.ts"
        if kind == "numbered":  # FFmpeg takes such a name for all pictures that fit it
            path = tmp_path / "img_%03d.png"
            path.write_bytes((tmp_path / "img_001.png").read_bytes())
        elif kind == "hls":
            head = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n"
            (path := tmp_path / f"x{suffix}").write_text(f"{head}#EXTINF:1,\n{address}\n#EXTINF:1,\nother.ts\n")
        else:
            (path := tmp_path / f"x{suffix}").write_text(f"ffconcat version 1.0\nfile other.ts\nfile {address}\n")
        for look in (probe, lambda p: read(p, Sampling(2))):
            with pytest.raises(SttmError, match=r"is a playlist|but a picture"):
                look(path)
        with pytest.raises(BlockingIOError):
            server.accept()  # nobody has called


def test_every_suffix_of_a_video_may_be_opened(tmp_path):
    """The list of formats leaves out none that the suffixes promise."""
    codecs = {".gif": ("gif", "rgb8"), ".webm": ("libvpx", "yuv420p"), ".ogv": ("libvpx", "yuv420p")}
    codecs |= dict.fromkeys((".mpg", ".mpeg", ".vob", ".mxf"), ("mpeg2video", "yuv420p"))
    for suffix in sorted(VIDEO_SUFFIXES - {".m2ts", ".mts"}):  # FFmpeg writes both as .ts
        codec, pixels = codecs.get(suffix, ("mpeg4", "yuv420p"))
        codec = {".flv": "flv", ".m4v": "mpeg4", ".3gp": "h263", ".3g2": "h263", ".wmv": "wmv2"}.get(suffix, codec)
        size = (176, 144)
        with av.open(str(path := tmp_path / f"x{suffix}"), "w") as container:
            stream: Any = container.add_stream(codec, rate=25)
            (stream.width, stream.height), stream.pix_fmt = size, pixels
            for _ in range(4):
                container.mux(stream.encode(av.VideoFrame(*size, pixels)))
            container.mux(stream.encode())
        assert read(path, Sampling(1))[0].frames_TCHW.shape == (1, 3, 144, 176), suffix


def test_a_playlist_in_an_archive_reaches_no_file(tmp_path):
    video = write_video(tmp_path / "secret.ts", 20)
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:10", "#EXTINF:1,", f"file://{video}", "#EXT-X-ENDLIST", ""]
    with pytest.raises(SttmError, match=r"^shard.tar/list.m3u8 "):
        read(OpenFile(io.BytesIO("\n".join(lines).encode()), "shard.tar/list.m3u8"), Sampling(2))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.mp4", None, "does not exist"),
        ("folder.mp4", "folder", "is a folder"),
        ("empty.mp4", b"", "is empty"),
        ("page.mp4", b"\n <!DOCTYPE html><html><body>404</body></html>", "is a web page"),
        ("noise.mp4", bytes(range(256)) * 8, "is not a readable video"),
        ("text.txt", b"hello world, this is no video\n" * 9, "is not a readable video but a text file"),
        ("art.ans", b"hello world\n" * 9, "is not a readable video but a text file"),
        ("list.ffconcat", b"ffconcat version 1.0\nfile /etc/passwd\n", "is a playlist"),
        ("dash.mpd", b'<?xml version="1.0"?><MPD type="static"></MPD>', "is a playlist"),
        pytest.param("huge.gif", HUGE_GIF, "has frames of 12000x12000 pixels, more than the 35,389,440", id="huge"),
        ("x" * 300, None, "cannot be opened"),
        ("nul\0byte", None, "cannot be opened"),
    ],
)
def test_what_is_no_video_gives_one_sentence(tmp_path, name, content, says):
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    for look in (probe, lambda p: read(p, Sampling())):
        with pytest.raises(SttmError, match=says) as caught:
            look(path)
        assert "\n" not in str(caught.value)


def test_an_mp4_without_its_index_and_one_with_sound_only(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", 20).read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole[: whole.index(b"moov") - 4])
    with pytest.raises(SttmError, match="cut off before its index"):
        read(cut, Sampling())
    sound = tmp_path / "sound.m4a"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        silence = np.zeros((1, 1024), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(SttmError, match="holds no video stream but audio"):
        read(sound, Sampling())


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = write_video(tmp_path / "secret.mp4", 2)

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "open", refuse)  # rather than chmod, which does not bind the superuser
    with pytest.raises(SttmError, match="permission denied"):
        read(path, Sampling())


def test_a_name_that_looks_like_an_address(tmp_path, monkeypatch):
    write_video(tmp_path / "plain.mp4", 2).rename(tmp_path / "concat:a|b.mp4")
    monkeypatch.chdir(tmp_path)
    assert read("concat:a|b.mp4", Sampling(2))[0].indices == (0, 1)
