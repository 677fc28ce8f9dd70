"""Makes pictures/: a small picture in every format that is read, and whole, damaged and cut off, and what PIL makes of each.

    python3 make_pictures.py        needs: pillow, numpy

expected.json: for each file width, height and the RGB bytes in hexadecimal, upright, or null where PIL raises.
"""

import io
import json
import pathlib

import numpy as np
from PIL import Image, ImageOps

FOLDER = pathlib.Path(__file__).parent / "pictures"
WIDTH, HEIGHT = 24, 16


def picture():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return Image.fromarray(np.stack([x * 10, y * 15, (x + y) * 6], 2).astype(np.uint8))


def saved(image, kind, **more):
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def read(data):
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    except Exception:
        return None
    return {"width": image.width, "height": image.height, "rgb": image.tobytes().hex()}


def main():
    FOLDER.mkdir(exist_ok=True)
    image = picture()
    grey = image.convert("L")
    rgba = image.convert("RGBA")
    rgba.putalpha(grey)
    turned = Image.Exif()
    turned[0x0112] = 6
    jpeg, progressive = saved(image, "JPEG", quality=95), saved(image, "JPEG", quality=95, progressive=True)
    thumbnail = saved(image, "JPEG", exif=b"Exif\0\0" + saved(grey, "JPEG"))
    files = {
        "whole.jpg": jpeg, "progressive.jpg": progressive, "junk-after.jpg": jpeg + b"junk" * 9, "thumbnail.jpg": thumbnail,
        "cut.jpg": jpeg[:len(jpeg) * 8 // 10], "cut-progressive.jpg": progressive[:len(progressive) * 8 // 10],
        "no-end.jpg": jpeg[:-2], "cut-thumbnail.jpg": thumbnail[:len(thumbnail) * 9 // 10],
        "turned.jpg": saved(image, "JPEG", quality=95, exif=turned.tobytes()),
        "a.bmp": saved(image, "BMP"), "grey.bmp": saved(grey, "BMP"), "palette.bmp": saved(image.quantize(16), "BMP"),
        "raw.tif": saved(image, "TIFF"), "lzw.tiff": saved(image, "TIFF", compression="tiff_lzw"),
        "deflate.tif": saved(image, "TIFF", compression="tiff_adobe_deflate"), "grey.tif": saved(grey, "TIFF"),
        "first.gif": saved(image.quantize(64), "GIF", save_all=True,
                           append_images=[ImageOps.invert(image).quantize(64)], duration=100),
        "lossless.webp": saved(image, "WEBP", lossless=True), "alpha.webp": saved(rgba, "WEBP", lossless=True, exact=True),
        "lossy.webp": saved(image, "WEBP", quality=90), "cut.png": saved(image, "PNG")[:70],
        "cut.bmp": saved(image, "BMP")[:300], "words.jpg": "to nie jest obraz".encode(), "empty.png": b"",
    }
    files["cut.webp"] = files["lossless.webp"][:-20]
    expected = {}
    for name, data in files.items():
        (FOLDER / name).write_bytes(data)
        expected[name] = read(data)
        print(name, len(data), expected[name] and (expected[name]["width"], expected[name]["height"]))
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in expected.items()]
    (FOLDER / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
