//! Limits of images in files of any format.

/// Refuses an image without pixels, and one with too many.
pub(super) fn check_size([width, height]: [u32; 2]) -> Result<(), String> {
    match u64::from(width) * u64::from(height) {
        0 => Err("it is empty".to_owned()),
        pixels if pixels > PIXEL_LIMIT => {
            Err(format!("it says it has {width} x {height} pixels, {PIXEL_LIMIT} are read at most"))
        }
        _ => Ok(()),
    }
}

/// The message for a truncated file.
pub(super) const CUT_OFF: &str = "its end is missing: the file is cut off";
/// Most pixels of an image: not all decoders respect the reader's memory limit.
const PIXEL_LIMIT: u64 = 400 << 20;
