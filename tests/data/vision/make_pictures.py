"""Makes pictures/: a small picture in every format that is read, and whole, damaged and cut off, and what PIL makes of each.

    python3 make_pictures.py        needs: pillow, numpy

expected.json: for each file width, height and the RGB bytes in hexadecimal, upright, or null where PIL raises.
"""

import io
import json
import pathlib
import struct

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


def placed(gif, screen, at):
    """The first frame at a place of a logical screen of its own size (GIF89a, 18 and 20)."""
    gif = bytearray(gif)
    gif[6:10] = struct.pack("<HH", *screen)
    descriptor = 13 + (3 << ((gif[10] & 7) + 1))
    while gif[descriptor] == ord("!"):
        descriptor += 2
        while gif[descriptor]:
            descriptor += gif[descriptor] + 1
        descriptor += 1
    assert gif[descriptor] == ord(",")
    gif[descriptor + 1:descriptor + 5] = struct.pack("<HH", *at)
    return bytes(gif)


def packed(image, bits):
    """Rows of numbers of few bits, the first in the upper ones."""
    rows = []
    for row in np.asarray(image):
        numbers = "".join(format(int(number), f"0{bits}b") for number in row)
        numbers += "0" * (-len(numbers) % 8)
        rows.append(int(numbers, 2).to_bytes(len(numbers) // 8, "big"))
    return b"".join(rows)


def tiff(order, data, bits, meaning, samples=1, colors=(), upright=1, missing=0):
    """A TIFF of one strip at its end, byte by byte: PIL writes no few bits."""
    short, long = 3, 4
    tags = [(256, short, WIDTH), (257, short, HEIGHT), (258, short, bits), (259, short, 1), (262, short, meaning),
            (273, long, 0), (274, short, upright), (277, short, samples), (278, short, HEIGHT), (279, long, len(data))]
    if colors:
        tags.append((320, short, colors))
    colors_at = 8 + 2 + 12 * len(tags) + 4
    file = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "LH", 8, len(tags))
    for tag, kind, value in tags:
        count = 1
        if tag == 273:
            value = colors_at + 2 * len(colors)
        if tag == 320:
            count, kind_of_value, value = len(colors), "L", colors_at
        else:
            kind_of_value = "H2x" if kind == short else "L"
        file += struct.pack(order + "HHL" + kind_of_value, tag, kind, count, value)
    file += bytes(4) + struct.pack(f"{order}{len(colors)}H", *colors) + data
    return file[:len(file) - missing]


def gifs(image):
    indexed = image.quantize(64)
    gif = saved(indexed, "GIF")
    return {
        "small-frame.gif": placed(gif, (32, 24), (5, 3)),
        "transparent-frame.gif": placed(saved(indexed, "GIF", transparency=5), (32, 24), (5, 3)),
        "large-frame.gif": placed(gif, (16, 10), (2, 1)), "grey.gif": placed(saved(image.convert("L"), "GIF"), (30, 20), (1, 1)),
        "cut.gif": gif[:len(gif) * 8 // 10],
    }


def tiffs(image, grey):
    inks = Image.merge("CMYK", (*image.convert("CMYK").split()[:3], grey.point(lambda value: value // 2)))
    numbers = np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH)
    colors = tuple((number * 4057) % 65536 for number in range(3 * 16))
    return {
        "palette.tif": saved(image.quantize(16), "TIFF"), "palette-lzw.tif": saved(image.quantize(200), "TIFF", compression="tiff_lzw"),
        "palette-4.tif": tiff("<", packed(numbers % 16, 4), 4, 3, colors=colors),
        "palette-1.tif": tiff(">", packed(numbers % 3 % 2, 1), 1, 3, colors=colors[:6], upright=6),
        "grey-4.tif": tiff("<", packed(numbers % 16, 4), 4, 1), "grey-2.tif": tiff(">", packed(numbers % 4, 2), 2, 0),
        "grey-alpha.tif": saved(image.convert("LA"), "TIFF"), "cmyk.tif": saved(inks, "TIFF", compression="tiff_lzw"),
        "ycbcr.tif": saved(image.convert("YCbCr"), "TIFF"),
        "cut.tif": tiff("<", image.tobytes(), 8, 2, samples=3, missing=99),
        "cut-palette.tif": tiff(">", packed(numbers % 16, 4), 4, 3, colors=colors, missing=9),
        "jpeg.tif": saved(image.convert("YCbCr"), "TIFF", compression="jpeg", quality=95),
    }


def refused(image, grey):
    """What PIL reads, clips or converts by its own lights, and is refused."""
    floats = np.asarray(grey).astype(np.float32) / 255
    return {
        "floats.tif": saved(Image.fromarray(floats), "TIFF"), "integers.tif": saved(grey.convert("I"), "TIFF"),
        "lab.tif": tiff("<", image.tobytes(), 8, 8, samples=3), "zstd.tif": saved(image, "TIFF", compression="zstd"),
    }


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
        **gifs(image), **tiffs(image, grey), "cut.bmp": saved(image, "BMP")[:300], "words.jpg": "to nie jest obraz".encode(), "empty.png": b"",
    }
    files["cut.webp"] = files["lossless.webp"][:-20]
    expected = {}
    for name, data in files.items():
        (FOLDER / name).write_bytes(data)
        expected[name] = read(data)
        print(name, len(data), expected[name] and (expected[name]["width"], expected[name]["height"]))
    for name, data in refused(image, grey).items():
        (FOLDER / name).write_bytes(data)
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in expected.items()]
    (FOLDER / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
