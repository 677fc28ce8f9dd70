//! Reads the first frame of a GIF like PIL (GifImagePlugin.py, `load_prepare`): the part of the logical screen outside
//! the frame has the transparent colour, or else the first one, and a frame beyond the screen enlarges it.

use gif::{DecodeOptions, DecodingError};
use image::RgbImage;

use super::limits::{CUT_OFF, check_size};

/// Colours of a palette; colours missing in the file are greys, as in PIL.
type Palette = [[u8; 3]; 256];

/// Reads the first frame of a GIF file.
pub(super) fn read(bytes: &[u8]) -> Result<RgbImage, String> {
    let decoding = |error: DecodingError| match error {
        DecodingError::UnexpectedEof => CUT_OFF.to_owned(),
        error => error.to_string(),
    };
    let mut decoder = DecodeOptions::new().read_info(bytes).map_err(decoding)?;
    let screen = [u32::from(decoder.width()), u32::from(decoder.height())];
    check_size(screen)?;
    let frame = decoder.next_frame_info().map_err(decoding)?.ok_or("it holds no picture")?;
    let [left, top, width, height] = [frame.left, frame.top, frame.width, frame.height].map(u32::from);
    let free = frame.transparent.unwrap_or(0);
    let [wide, high] = [screen[0].max(left + width), screen[1].max(top + height)];
    check_size([width, height])?;
    check_size([wide, high])?;
    let mut indices = vec![0; decoder.buffer_size()];
    decoder.read_into_buffer(&mut indices).map_err(decoding)?;
    let palette = palette(decoder.palette().map_err(decoding)?);
    let mut picture = RgbImage::from_pixel(wide, high, image::Rgb(palette[usize::from(free)]));
    let rows = picture.rows_mut().skip(top as usize).zip(indices.chunks_exact(width as usize));
    for (row, indices) in rows {
        for (pixel, index) in row.skip(left as usize).zip(indices) {
            pixel.0 = palette[usize::from(*index)];
        }
    }
    Ok(picture)
}

fn palette(bytes: &[u8]) -> Palette {
    let grey = |index: usize| [u8::try_from(index).unwrap_or(u8::MAX); 3];
    let mut palette: Palette = std::array::from_fn(grey);
    for (color, bytes) in palette.iter_mut().zip(bytes.chunks_exact(3)) {
        color.copy_from_slice(bytes);
    }
    palette
}
