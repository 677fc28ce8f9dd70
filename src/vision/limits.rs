//! What is refused of pictures in files of any format.

/// Refuses a picture of no pixels, and of too many.
pub(super) fn check_size([width, height]: [u32; 2]) -> Result<(), String> {
    match u64::from(width) * u64::from(height) {
        0 => Err("it is empty".to_owned()),
        pixels if pixels > PIXEL_LIMIT => {
            Err(format!("it says it has {width} x {height} pixels, {PIXEL_LIMIT} are read at most"))
        }
        _ => Ok(()),
    }
}

/// What is said of a file that ends too early.
pub(super) const CUT_OFF: &str = "its end is missing: the file is cut off";
/// Pixels of a picture: not all decoders keep to the reader's limit of memory.
const PIXEL_LIMIT: u64 = 400 << 20;
