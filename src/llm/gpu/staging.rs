//! A tensor's way up to the device, in pieces: two of pinned memory, filled by turns, and one on the device, where kernels take
//! what is not yet as it is wanted.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream};

use super::buffers::{Buffer, Pinned};
use super::driver::{Address, device_error};
use crate::backend::BackendError;

/// Bytes of a piece, unless a row needs more: large enough for the bus, small beside any model.
pub(super) const PIECE: usize = 16 << 20;

/// Pinned memory, and what tells that its copy is done.
struct PinnedPiece {
    pinned: Pinned,
    copied: CudaEvent,
}

/// See the module.
pub(super) struct Staging {
    stream: Arc<CudaStream>,
    pieces: [PinnedPiece; 2],
    /// Which of them is filled next.
    next: usize,
    piece: usize,
    device: Buffer,
}

impl Staging {
    /// With pieces of `piece` bytes.
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

    /// Room for `bytes`, at most a piece, to be sent next; waits until what was last sent from there is copied.
    pub(super) fn room(&mut self, bytes: usize) -> Result<&mut [u8], BackendError> {
        let PinnedPiece { pinned, copied } = &mut self.pieces[self.next];
        let piece = self.piece;
        let room = pinned.write_after(copied)?.get_mut(..bytes);
        room.ok_or_else(|| BackendError::Run(format!("{bytes} bytes are to go up in a piece of {piece}").into()))
    }

    /// Sends the first `bytes` of the room to the device's piece, in the stream's order: kernels before have read what was there.
    pub(super) fn send(&mut self, bytes: usize) -> Result<(), BackendError> {
        self.device.upload_part(0, &self.pieces[self.next].pinned, bytes)?;
        self.sent()
    }

    /// Sends them to their place, `first` and on in `target`.
    pub(super) fn send_to(&mut self, target: &mut Buffer, first: usize, bytes: usize) -> Result<(), BackendError> {
        target.upload_part(first, &self.pieces[self.next].pinned, bytes)?;
        self.sent()
    }

    fn sent(&mut self) -> Result<(), BackendError> {
        self.pieces[self.next].copied.record(&self.stream).map_err(device_error)?;
        self.next = 1 - self.next;
        Ok(())
    }

    /// The piece on the device.
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

    /// A piece is not written again before it is copied, however fast it is filled.
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
