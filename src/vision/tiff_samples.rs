//! Reads TIFFs whose samples are not RGB (palette indices, inks, YCbCr, few bits, grey with alpha) like PIL's
//! `convert("RGB")`. Those that neither this module nor the `image` crate reads are refused by name.

use std::io::{Cursor, ErrorKind};

use image::metadata::Orientation;
use image::{DynamicImage, RgbImage};
use tiff::decoder::{Decoder, DecodingResult};
use tiff::tags::Tag;
use tiff::{ColorType, TiffError};

use super::limits::{CUT_OFF, check_size};
use crate::diagnostic::Diagnostic;

const HELP: &str = "TIFFs of 8 or 16 bits in grey, RGB, CMYK or YCbCr, or with a palette, are read; save it as one of \
                    them, or as PNG";
const COMPRESSION_HELP: &str = "TIFFs without compression, or with LZW, deflate, PackBits, JPEG or fax (group 4), are \
                                read; save it as one of them, or as PNG";

/// Meaning of samples (TIFF 6.0, `PhotometricInterpretation`).
mod photo {
    pub(super) const WHITE_IS_ZERO: u16 = 0;
    pub(super) const BLACK_IS_ZERO: u16 = 1;
    pub(super) const RGB: u16 = 2;
    pub(super) const PALETTE: u16 = 3;
    pub(super) const INKS: u16 = 5;
    pub(super) const YCBCR: u16 = 6;
}

/// Reads the first image of a file in its orientation; `None` if the `image` crate reads its samples correctly.
pub(super) fn read(mut bytes: Vec<u8>) -> Result<Option<RgbImage>, Diagnostic> {
    let Some(TagEntry { at, value: meaning }) = photometric(&bytes) else { return Ok(None) };
    let (bits, samples) = judge(&mut open(&bytes)?, meaning)?;
    let planes = match (meaning, bits, samples) {
        (photo::PALETTE, 1 | 2 | 4 | 8, 1) => {
            // The decoder takes no palettes; as greys it hands out the indices.
            let word = bytes.get_mut(at..at.saturating_add(2)).ok_or_else(damaged)?;
            let order: fn(u16) -> [u8; 2] = if word[0] == 0 { u16::to_be_bytes } else { u16::to_le_bytes };
            word.copy_from_slice(&order(photo::BLACK_IS_ZERO));
            1
        }
        (photo::PALETTE, ..) => {
            return Err(refused(format!("its palette has indices of {bits} bits, and {samples} samples a pixel")));
        }
        (photo::BLACK_IS_ZERO | photo::WHITE_IS_ZERO, 2 | 4, 1) => 1,
        (photo::BLACK_IS_ZERO, 8, 2) => 2,
        (photo::INKS, 8, _) => 4,
        (photo::YCBCR, 8, 3) => 3,
        (photo::YCBCR, ..) => return Err(refused(format!("its YCbCr has {samples} samples of {bits} bits a pixel"))),
        _ => return Ok(None),
    };
    let mut decoder = open(&bytes)?;
    if planes > 1 && number(&mut decoder, Tag::PlanarConfiguration, 1)? == 2 {
        return Err(refused("its channels lie one behind the other (planar), and they are no RGB"));
    }
    let palette = match meaning {
        photo::PALETTE => Some(palette(&mut decoder, bits)?),
        _ => None,
    };
    let picture = colors(&mut decoder, (meaning, bits), palette.as_deref())?;
    let orientation = u8::try_from(number(&mut decoder, Tag::Orientation, 1)?).ok().and_then(Orientation::from_exif);
    let mut picture = DynamicImage::ImageRgb8(picture);
    picture.apply_orientation(orientation.unwrap_or(Orientation::NoTransforms));
    Ok(Some(picture.into_rgb8()))
}

fn damaged() -> Diagnostic {
    Diagnostic::new("it is no whole TIFF")
}

/// The error for a feature that the decoder does not support, with the hint.
pub(super) fn unsupported(text: &str) -> Diagnostic {
    let help = if text.contains("compression") { COMPRESSION_HELP } else { HELP };
    // The `image` crate says first what every such message says.
    let text = text.split("format features ").last().unwrap_or(text);
    Diagnostic::new(text).with_help(help)
}

/// The error for samples that are not supported, with what is.
fn refused(what: impl Into<String>) -> Diagnostic {
    Diagnostic::new(what).with_help(HELP)
}

fn read_error(error: TiffError) -> Diagnostic {
    match error {
        TiffError::UnsupportedError(error) => unsupported(&error.to_string()),
        TiffError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => CUT_OFF.into(),
        error => error.to_string().into(),
    }
}

type TiffReader<'a> = Decoder<Cursor<&'a [u8]>>;

fn open(bytes: &[u8]) -> Result<TiffReader<'_>, Diagnostic> {
    // The decoder's default limits bound memory.
    Decoder::new(Cursor::new(bytes)).map_err(read_error)
}

/// The first value of a tag.
fn number(decoder: &mut TiffReader<'_>, tag: Tag, default: u16) -> Result<u16, Diagnostic> {
    let values = decoder.find_tag_unsigned_vec::<u16>(tag).map_err(read_error)?;
    Ok(values.and_then(|values| values.first().copied()).unwrap_or(default))
}

/// Bits per sample and samples per pixel, if both are supported.
fn judge(decoder: &mut TiffReader<'_>, meaning: u16) -> Result<(u16, u16), Diagnostic> {
    let (width, height) = decoder.dimensions().map_err(read_error)?;
    check_size([width, height])?;
    let (bits, samples) = (number(decoder, Tag::BitsPerSample, 1)?, number(decoder, Tag::SamplesPerPixel, 1)?);
    // TIFF 6.0, `SampleFormat`: 1 is unsigned, which is what 4, undefined, is read as.
    let kind = match number(decoder, Tag::SampleFormat, 1)? {
        1 | 4 => None,
        2 => Some("signed integers"),
        3 => Some("floating-point numbers"),
        _ => Some("complex numbers"),
    };
    if let Some(kind) = kind {
        return Err(refused(format!("its samples are {kind}, of which none is known to be white")));
    }
    if number(decoder, Tag::FillOrder, 1)? == 2 {
        return Err(refused("the bits of its bytes are in reverse order (FillOrder 2)"));
    }
    if bits > 16 {
        return Err(refused(format!("its samples have {bits} bits")));
    }
    let (compression, predictor) = (number(decoder, Tag::Compression, 1)?, number(decoder, Tag::Predictor, 1)?);
    let has_alpha = matches!(samples, 2 | 4) && meaning != photo::INKS;
    let odd = match number(decoder, Tag::ExtraSamples, 0)? {
        // The decoder gives rows of three samples there.
        _ if samples == 2 && compression == 7 => Some("it is grey beside alpha in JPEG compression"),
        1 if has_alpha => Some("its colours are multiplied by its alpha"),
        // PIL leaves it out there, others do not.
        _ if compression == 1 && predictor != 1 => Some("it has a predictor without compression"),
        _ => None,
    };
    if let Some(odd) = odd {
        return Err(refused(odd));
    }
    let color = match meaning {
        photo::WHITE_IS_ZERO | photo::BLACK_IS_ZERO | photo::RGB | photo::PALETTE | photo::INKS | photo::YCBCR => {
            return Ok((bits, samples));
        }
        4 => "a mask".to_owned(),
        8..=10 => "CIE L*a*b*".to_owned(),
        other => format!("of a kind that is not read (PhotometricInterpretation {other})"),
    };
    Err(refused(format!("its colours are {color}")))
}

/// Red, green and blue of each index; of 16 bits the upper 8 (PIL, TiffImagePlugin.py, `_setup`).
fn palette(decoder: &mut TiffReader<'_>, bits: u16) -> Result<Vec<[u8; 3]>, Diagnostic> {
    let map = decoder.find_tag_unsigned_vec::<u16>(Tag::ColorMap).map_err(read_error)?;
    let map = map.ok_or("its palette is missing")?;
    let count = 1usize << bits.min(8);
    if map.len() != 3 * count {
        return Err(format!("its palette has {} numbers, {bits} bits want {}", map.len(), 3 * count).into());
    }
    Ok((0..count).map(|index| [0, 1, 2].map(|channel| map[channel * count + index].to_be_bytes()[0])).collect())
}

/// Converts the image, whose samples have at most 8 bits, to RGB.
fn colors(
    decoder: &mut TiffReader<'_>,
    (meaning, bits): (u16, u16),
    palette: Option<&[[u8; 3]]>,
) -> Result<RgbImage, Diagnostic> {
    let (width, height) = decoder.dimensions().map_err(read_error)?;
    let color = decoder.colortype().map_err(read_error)?;
    let DecodingResult::U8(samples) = decoder.read_image().map_err(read_error)? else {
        return Err(refused(format!("its samples are not of {bits} bits")));
    };
    let stride = (u64::from(width) * u64::from(bits) * u64::from(color.num_samples())).div_ceil(8);
    let stride = usize::try_from(stride).map_err(|_| damaged())?;
    let step = usize::from(color.num_samples());
    let mut picture = RgbImage::new(width, height);
    if stride == 0 || samples.len() / stride < height as usize {
        return Err(damaged());
    }
    // Whole bytes tell white by 255, fewer bits by all ones.
    let white = u8::MAX >> (8 - bits.clamp(1, 8));
    for (row, samples) in picture.rows_mut().zip(samples.chunks_exact(stride)) {
        for (x, pixel) in row.enumerate() {
            let index = if bits < 8 { few_bits(samples, x, bits) } else { samples[x * step] };
            pixel.0 = match (meaning, palette, color) {
                (_, Some(palette), _) => palette[usize::from(index)],
                (photo::INKS, _, _) => inks(&samples[x * step..][..4]),
                (_, _, ColorType::YCbCr(_)) => ycbcr(&samples[x * step..][..3]),
                _ => [index * (u8::MAX / white); 3],
            };
        }
    }
    Ok(picture)
}

/// Value number `x` in a row of values with less than 8 bits, packed from the upper bits.
fn few_bits(row: &[u8], x: usize, bits: u16) -> u8 {
    let bits = usize::from(bits);
    let shift = 8 - bits - (x * bits) % 8;
    (row[x * bits / 8] >> shift) & (u8::MAX >> (8 - bits))
}

/// CMYK to RGB with PIL's rounding (libImaging/Convert.c, `cmyk2rgb`).
fn inks(sample: &[u8]) -> [u8; 3] {
    let light = 255 - u32::from(sample[3]);
    [0, 1, 2].map(|channel| {
        let product = u32::from(sample[channel]) * light + 128;
        u8::try_from(light - ((product >> 8) + product) / 256).unwrap_or(0)
    })
}

/// YCbCr to RGB by JFIF 1.02's equations, in 65,536ths as in PIL.
fn ycbcr(sample: &[u8]) -> [u8; 3] {
    let [y, blue, red] = [sample[0], sample[1], sample[2]].map(i32::from);
    let (blue, red) = (blue - 128, red - 128);
    let shifts = [91_881 * red, -22_554 * blue - 46_802 * red, 116_130 * blue];
    shifts.map(|shift| u8::try_from((y + (shift >> 16)).clamp(0, 255)).unwrap_or(u8::MAX))
}

/// An entry of the first directory: its offset and value.
struct TagEntry {
    at: usize,
    value: u16,
}

/// The entry `PhotometricInterpretation` of the first directory (TIFF 6.0, section 2; BigTIFF has wider counts and
/// entries).
fn photometric(bytes: &[u8]) -> Option<TagEntry> {
    const PHOTOMETRIC: u64 = 262;
    const SHORT: u64 = 3;
    let little = match bytes.get(..2)? {
        b"II" => true,
        b"MM" => false,
        _ => return None,
    };
    let number = |at: usize, width: usize| -> Option<u64> {
        let bytes = bytes.get(at..at.checked_add(width)?)?.iter();
        let joined = |number: u64, byte: &u8| (number << 8) | u64::from(*byte);
        Some(if little { bytes.rev().fold(0, joined) } else { bytes.fold(0, joined) })
    };
    let (offset, count_width, entry) = match number(2, 2)? {
        42 => (number(4, 4)?, 2, 12),
        43 => (number(8, 8)?, 8, 20),
        _ => return None,
    };
    let offset = usize::try_from(offset).ok()?;
    let entries = usize::try_from(number(offset, count_width)?).ok()?.min(bytes.len() / entry);
    let first = offset.checked_add(count_width)?;
    let mut places = (0..entries).filter_map(|index| first.checked_add(index * entry));
    let at = places.find(|at| number(*at, 2) == Some(PHOTOMETRIC))?;
    // Tag and type have two bytes each, the count fills up to the value.
    let value = at.checked_add(if entry == 12 { 8 } else { 12 })?;
    if number(at + 2, 2)? != SHORT {
        return None;
    }
    Some(TagEntry { at: value, value: u16::try_from(number(value, 2)?).ok()? })
}
