//! The file of a prefix: what it is of, and its keys and values layer by layer, each part with its SHA-256.
//!
//! ```text
//! magic, length of the header | header: JSON | SHA-256 of all before
//! keys and values of a layer | SHA-256 of the header's SHA-256, the layer's number and its bytes    … for each layer
//! ```

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::artifact::{StagedFile, sha256};
use crate::regular_file;
use crate::spec::KvLayout;

/// First bytes of a file, with the format's number.
const MAGIC: [u8; 8] = *b"WATUSKV1";
/// Bytes before the header.
const START: usize = MAGIC.len() + size_of::<u32>();
/// Bytes of a SHA-256.
const DIGEST: usize = 32;
/// Ending of the names.
const ENDING: &str = ".prefix";

/// What a prefix is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub(super) struct PrefixHeader {
    /// Digest of the engine and of what computed with it.
    pub(super) engine: String,
    pub(super) layout: KvLayout,
    /// Scope of the requests that it is of.
    pub(super) scope: u64,
    pub(super) tokens: Vec<u32>,
}

/// Whether a file's name is one of ours.
pub(super) fn is_stored(name: &str) -> bool {
    let digest = name.strip_suffix(ENDING).unwrap_or_default();
    digest.len() == 2 * DIGEST && digest.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn odd(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl PrefixHeader {
    /// The file's name: the same prefix has the same.
    pub(super) fn name(&self) -> io::Result<String> {
        Ok(format!("{}{ENDING}", sha256(&serde_json::to_vec(self)?)))
    }

    /// The file's beginning, with the header's digest at its end.
    fn beginning(&self) -> io::Result<Vec<u8>> {
        let text = serde_json::to_vec(self)?;
        let length = u32::try_from(text.len()).map_err(|_| odd("too many tokens"))?;
        let mut bytes = Vec::with_capacity(START + text.len() + DIGEST);
        bytes.extend(MAGIC);
        bytes.extend(length.to_le_bytes());
        bytes.extend(text);
        let digest = Sha256::digest(&bytes);
        bytes.extend(digest);
        Ok(bytes)
    }

    /// Bytes of a layer's keys and values.
    fn block(&self) -> io::Result<usize> {
        self.layout.layer_bytes(self.tokens.len()).ok_or_else(|| odd("its layout has no size"))
    }

    /// Bytes of a file with a beginning of so many.
    fn total(&self, beginning: usize) -> io::Result<u64> {
        let block = self.block()?.checked_add(DIGEST);
        let total = block.and_then(|block| block.checked_mul(self.layout.layers)?.checked_add(beginning));
        total.and_then(|total| u64::try_from(total).ok()).ok_or_else(|| odd("its layout has no size"))
    }

    /// Bytes of the whole file.
    pub(super) fn file_bytes(&self) -> io::Result<u64> {
        self.total(self.beginning()?.len())
    }
}

/// The digest of a layer's block, which fits neither another file nor another layer.
fn block_digest(header: &[u8; DIGEST], layer: usize, block: &[u8]) -> [u8; DIGEST] {
    let mut hasher = Sha256::new();
    hasher.update(header);
    hasher.update((layer as u64).to_le_bytes());
    hasher.update(block);
    hasher.finalize().into()
}

/// A file whose header has been read.
pub(super) struct PrefixFile {
    file: File,
    pub(super) header: PrefixHeader,
    digest: [u8; DIGEST],
    /// Where the first block is, and the bytes of each.
    first: usize,
    block: usize,
    pub(super) bytes: u64,
}

impl PrefixFile {
    /// Opens a file and checks its header, its name and its length.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = regular_file::open(path)?;
        let bytes = file.metadata()?.len();
        let mut start = [0; START];
        file.read_exact_at(&mut start, 0).map_err(|_| odd("it is cut off"))?;
        let [magic @ .., a, b, c, d] = start;
        if magic != MAGIC {
            return Err(odd("it is no file of this format"));
        }
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let first = START + length + DIGEST;
        if first as u64 > bytes {
            return Err(odd("it is cut off"));
        }
        let mut beginning = vec![0; first];
        file.read_exact_at(&mut beginning, 0)?;
        let (text, stored) = beginning.split_at(START + length);
        let digest: [u8; DIGEST] = Sha256::digest(text).into();
        if stored != digest {
            return Err(odd("its header is damaged"));
        }
        let header: PrefixHeader = serde_json::from_slice(&text[START..])?;
        if header.tokens.is_empty() || path.file_name().and_then(|name| name.to_str()) != Some(&*header.name()?) {
            return Err(odd("it is not what its name says"));
        }
        let (block, total) = (header.block()?, header.total(first)?);
        if bytes != total {
            return Err(odd(format!("it has {bytes} bytes instead of {total}")));
        }
        Ok(Self { file, header, digest, first, block, bytes })
    }

    /// Reads and checks a layer's keys and values.
    pub(super) fn read(&self, layer: usize) -> io::Result<Vec<u8>> {
        let at = self.first + layer * (self.block + DIGEST); // within the file, whose length was checked
        let mut block = vec![0; self.block + DIGEST];
        self.file.read_exact_at(&mut block, at as u64)?;
        let stored = block.split_off(self.block);
        if stored != block_digest(&self.digest, layer, &block) {
            return Err(odd(format!("its layer {layer} is damaged")));
        }
        Ok(block)
    }
}

/// A file that is being written, and appears whole or not at all.
pub(super) struct PrefixWriter {
    staged: StagedFile,
    digest: [u8; DIGEST],
    block: usize,
    layers: usize,
    /// Number of layers so far.
    pub(super) layer: usize,
}

impl PrefixWriter {
    /// Starts a file in `folder`.
    pub(super) fn create(folder: &Path, header: &PrefixHeader) -> io::Result<Self> {
        let beginning = header.beginning()?;
        let mut digest = [0; DIGEST];
        digest.copy_from_slice(&beginning[beginning.len() - DIGEST..]);
        let mut staged = StagedFile::create_private(&folder.join(header.name()?))?;
        staged.write_all(&beginning)?;
        Ok(Self { staged, digest, block: header.block()?, layers: header.layout.layers, layer: 0 })
    }

    /// Appends the next layer's keys and values.
    pub(super) fn append(&mut self, block: &[u8]) -> io::Result<()> {
        if block.len() != self.block || self.is_complete() {
            return Err(odd(format!("{} bytes are no layer's keys and values", block.len())));
        }
        self.staged.write_all(block)?;
        self.staged.write_all(&block_digest(&self.digest, self.layer, block))?;
        self.layer += 1;
        Ok(())
    }

    /// Whether all layers are written.
    pub(super) fn is_complete(&self) -> bool {
        self.layer == self.layers
    }

    /// Flushes the file to disk and gives it its name.
    pub(super) fn publish(self, folder: &Path) -> io::Result<()> {
        self.staged.publish()?;
        File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::spec::KvCache;
    use crate::tensor::DType;

    fn header() -> PrefixHeader {
        let (elements, dtype) = (DType::Float16, DType::Float16);
        let layout = KvLayout { layers: 3, kv_heads: 2, head_dim: 4, elements, dtype, kv_cache: KvCache::Auto };
        PrefixHeader { engine: "e".to_owned(), layout, scope: 7, tokens: vec![5, 6, 7] }
    }

    fn block(layer: u8) -> Vec<u8> {
        (0..96).map(|at| at + layer).collect()
    }

    /// A written file.
    fn written(folder: &Path) -> std::path::PathBuf {
        let header = header();
        let mut writer = PrefixWriter::create(folder, &header).unwrap();
        assert!(writer.append(&[0; 95]).is_err());
        (0..3).for_each(|layer| writer.append(&block(layer)).unwrap());
        assert!(writer.is_complete() && writer.append(&block(3)).is_err());
        writer.publish(folder).unwrap();
        folder.join(header.name().unwrap())
    }

    /// Reads all of it.
    fn read(path: &Path) -> io::Result<(PrefixHeader, Vec<Vec<u8>>)> {
        let file = PrefixFile::open(path)?;
        let blocks = (0..file.header.layout.layers).map(|layer| file.read(layer)).collect::<io::Result<_>>()?;
        Ok((file.header, blocks))
    }

    #[test]
    fn what_is_written_is_read() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        assert_eq!(read(&path).unwrap(), (header(), (0..3).map(block).collect()));
        let about = fs::metadata(&path).unwrap();
        assert_eq!((about.len(), about.permissions().mode() & 0o777), (header().file_bytes().unwrap(), 0o600));
        assert!(is_stored(path.file_name().unwrap().to_str().unwrap()));
        assert!(!is_stored("secret") && !is_stored(".prefix") && !is_stored(&format!("{}.prefix", "x".repeat(64))));
    }

    #[test]
    fn no_byte_can_be_changed_or_missing() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            for bit in [1, 0x80] {
                let mut changed = whole.clone();
                changed[at] ^= bit;
                fs::write(&path, &changed).unwrap();
                assert!(read(&path).is_err(), "byte {at} ^ {bit}");
            }
        }
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(PrefixFile::open(&path).is_err(), "{length} bytes");
        }
        fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert!(PrefixFile::open(&path).is_err(), "a byte more");
        // Blocks that change places, each whole.
        let first = whole.len() - 3 * (96 + DIGEST);
        let mut exchanged = whole.clone();
        exchanged[first..].rotate_left(96 + DIGEST);
        fs::write(&path, &exchanged).unwrap();
        assert!(PrefixFile::open(&path).is_ok() && read(&path).is_err(), "layers that change places");
        let other = folder.path().join(PrefixHeader { scope: 8, ..header() }.name().unwrap());
        fs::write(&other, &whole).unwrap();
        assert!(PrefixFile::open(&other).is_err(), "another's name");
        fs::write(&path, &whole).unwrap();
        assert!(read(&path).is_ok());
    }

    #[test]
    fn absurd_headers_are_refused_before_memory_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let whole = header();
        let huge = KvLayout { layers: usize::MAX, ..whole.layout };
        let wide = KvLayout { head_dim: usize::MAX, ..whole.layout };
        let cases = [
            PrefixHeader { layout: huge, ..whole.clone() },
            PrefixHeader { layout: wide, ..whole.clone() },
            PrefixHeader { tokens: Vec::new(), ..whole },
        ];
        for header in cases {
            let path = folder.path().join(header.name().unwrap());
            fs::write(&path, header.beginning().unwrap()).unwrap();
            assert!(PrefixFile::open(&path).is_err(), "{header:?}");
        }
        let path = folder.path().join("x");
        fs::write(&path, [&MAGIC[..], &[0xff; 4], &[0; 64]].concat()).unwrap();
        assert!(PrefixFile::open(&path).is_err(), "a header of 4 GiB");
    }
}
