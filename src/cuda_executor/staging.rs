//! Uploads tensors in pieces: two pinned host buffers that are filled in turn, and one device buffer, from which
//! kernels convert what is not uploaded in its final form.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream};

use super::buffers::{Buffer, Pinned};
use super::driver::{Address, device_error};
use crate::backend::BackendError;

/// Bytes of a piece, unless a row needs more: large enough for the bus, small compared with any model.
pub(super) const PIECE: usize = 16 << 20;

/// A pinned buffer, and the event that its copy is done.
struct PinnedPiece {
    pinned: Pinned,
    copied: CudaEvent,
}

/// The staging buffers.
pub(super) struct Staging {
    stream: Arc<CudaStream>,
    pieces: [PinnedPiece; 2],
    /// Index of the pinned buffer to fill next.
    next: usize,
    piece: usize,
    device: Buffer,
}

impl Staging {
    /// Allocates buffers of `piece` bytes.
    pub(super) fn new(stream: &Arc<CudaStream>, piece: usize) -> Result<Self, BackendError> {
        let new = || {
            let copied = stream.context().new_event(None).map_err(device_error)?;
            Ok::<_, BackendError>(PinnedPiece { pinned: Pinned::new(stream, piece)?, copied })
        };
        Ok(Self {
            stream: Arc::clone(stream),
            pieces: [new()?, new()?],
            next: 0,
            piece,
            device: Buffer::unset(stream, piece, "tensors on their way")?,
        })
    }

    /// Bytes of a piece.
    pub(super) fn piece(&self) -> usize {
        self.piece
    }

    /// The next pinned buffer's first `bytes`, at most a piece; waits until its previous copy is done.
    pub(super) fn room(&mut self, bytes: usize) -> Result<&mut [u8], BackendError> {
        let PinnedPiece { pinned, copied } = &mut self.pieces[self.next];
        let piece = self.piece;
        let room = pinned.write_after(copied)?.get_mut(..bytes);
        room.ok_or_else(|| BackendError::Run(format!("{bytes} bytes are to go up in a piece of {piece}").into()))
    }

    /// Copies the first `bytes` of the pinned buffer to the device buffer, in the stream's order, after earlier kernels
    /// have read it.
    pub(super) fn send(&mut self, bytes: usize) -> Result<(), BackendError> {
        self.device.upload_part(0, &self.pieces[self.next].pinned, bytes)?;
        self.sent()
    }

    /// Copies the first `bytes` of the pinned buffer to `target` at offset `first`.
    pub(super) fn send_to(&mut self, target: &mut Buffer, first: usize, bytes: usize) -> Result<(), BackendError> {
        target.upload_part(first, &self.pieces[self.next].pinned, bytes)?;
        self.sent()
    }

    fn sent(&mut self) -> Result<(), BackendError> {
        self.pieces[self.next].copied.record(&self.stream).map_err(device_error)?;
        self.next = 1 - self.next;
        Ok(())
    }

    /// Address of the device buffer.
    pub(super) fn address(&self) -> Address {
        self.device.address()
    }
}

#[cfg(test)]
#[allow(clippy::print_stderr)]
mod tests {
    use super::super::buffers::single_stream;
    use super::*;
    use crate::backend::tensorrt::device::Device;

    /// A buffer is not written again before it is copied, however fast it is filled.
    #[test]
    fn what_is_sent_arrives() {
        const BYTES: usize = 1 << 20;
        const COUNT: usize = 100;
        let device = match Device::open() {
            Ok(device) => device,
            Err(error) => return eprintln!("SKIPPED what_is_sent_arrives: {error}"),
        };
        single_stream(&device.stream);
        let mut staging = Staging::new(&device.stream, BYTES).unwrap();
        let mut target = Buffer::unset(&device.stream, COUNT * BYTES, "a test").unwrap();
        for at in 0..COUNT {
            staging.room(BYTES).unwrap().fill(u8::try_from(at).unwrap());
            staging.send_to(&mut target, at * BYTES, BYTES).unwrap();
        }
        let mut pinned = Pinned::new(&device.stream, COUNT * BYTES).unwrap();
        target.download(&mut pinned, 0, COUNT * BYTES).unwrap();
        for (at, piece) in pinned.bytes().unwrap().chunks_exact(BYTES).enumerate() {
            assert!(piece.iter().all(|byte| usize::from(*byte) == at), "piece {at} was overwritten");
        }
        assert!(staging.room(BYTES + 1).is_err(), "more than a piece");
        assert!(staging.send_to(&mut target, COUNT * BYTES - 1, 2).is_err(), "beyond the buffer");
    }
}
