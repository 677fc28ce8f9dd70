//! Samples memory in a thread while a model is loaded.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::memory;
use crate::memory::page_cache::Watched;

/// Peak memory of each kind in bytes; `None` if it cannot be measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loading {
    /// Resident anonymous pages of the process, which belong to no file.
    pub anonymous: Option<u64>,
    /// Growth of the weight files' pages in the page cache.
    pub page_cache: Option<u64>,
    /// Growth of the device's used memory. On an integrated GPU, which shares the machine's memory, anonymous pages
    /// count as used and the page cache does not.
    pub device: Option<u64>,
}

/// Shortest pause between two samples; counting the cached pages of 15 GB takes as long.
const PAUSE: Duration = Duration::from_millis(20);

/// A running sampler thread.
pub struct MemorySampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Loading>,
}

/// Returns the bytes of device memory in use, if they can be measured.
pub type Used = Box<dyn Fn() -> Option<u64> + Send>;

impl MemorySampler {
    /// Starts sampling this process, the page cache of `files`, and `device`.
    pub fn start(files: Vec<PathBuf>, device: Used) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = spawn(move || watch(&files, &*device, &seen));
        Self { stop, thread }
    }

    /// Stops sampling and returns the peaks.
    pub fn stop(self) -> Loading {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

/// The larger of two figures, either of which may be missing.
fn most(before: Option<u64>, now: Option<u64>) -> Option<u64> {
    before.max(now)
}

fn watch(files: &[PathBuf], device: &dyn Fn() -> Option<u64>, stop: &AtomicBool) -> Loading {
    // Of all files or of none: a part of them would look like little.
    let files: Option<Vec<Watched>> = files.iter().map(|path| Watched::open(path).ok()).collect();
    let cached = || files.as_ref()?.iter().map(|file| file.cached().ok()).sum::<Option<u64>>();
    let (cached_before, used_before) = (cached(), device());
    let beyond = |now: Option<u64>, before: Option<u64>| Some(now?.saturating_sub(before?));
    let mut loading = Loading::default();
    loop {
        let last = stop.load(Ordering::Relaxed);
        let began = Instant::now();
        loading.anonymous = most(loading.anonymous, memory::of_process("self", "RssAnon"));
        loading.device = most(loading.device, beyond(device(), used_before));
        loading.page_cache = most(loading.page_cache, beyond(cached(), cached_before));
        if last {
            return loading;
        }
        sleep(PAUSE.max(began.elapsed()));
    }
}

impl Loading {
    /// The peaks in words: "14.6 GB of device memory, 310 MB of the host's, 90 MB of the page cache"; `None` if none
    /// was measured.
    pub(super) fn text(&self) -> Option<String> {
        let kinds = [
            (self.device, "of the device's memory"),
            (self.anonymous, "of the host's"),
            (self.page_cache, "of the weights' files in the page cache"),
        ];
        let known =
            kinds.iter().filter_map(|(bytes, what)| Some(format!("{} {what}", memory::format_bytes((*bytes)?))));
        let known: Vec<String> = known.collect();
        (!known.is_empty()).then(|| known.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn the_most_of_each_kind_is_kept() {
        let used = Arc::new(AtomicU64::new(700));
        let told = Arc::clone(&used);
        // Without room: what is told next is read after this was heard.
        let (told_so, heard) = std::sync::mpsc::sync_channel(0);
        let device = move || {
            let bytes = told.load(Ordering::Relaxed);
            let _ = told_so.send(());
            Some(bytes)
        };
        let sampler = MemorySampler::start(vec!["/nowhere/weights".into()], Box::new(device));
        // Before, then 2,000 more, then less again. The first of two looks may have been begun before.
        let wait = || (0..2).for_each(|_| heard.recv().unwrap());
        heard.recv().unwrap();
        used.store(2_700, Ordering::Relaxed);
        wait();
        used.store(900, Ordering::Relaxed);
        wait();
        drop(heard);
        let loading = sampler.stop();
        assert_eq!(loading.device, Some(2_000));
        // A file that cannot be asked: nothing is said of it.
        assert_eq!(loading.page_cache, None);
        assert!(loading.anonymous.unwrap() > 100_000, "{loading:?}");
        let text = loading.text().unwrap();
        assert!(text.starts_with("1 MB of the device's memory, ") && !text.contains("page cache"), "{text}");
        assert_eq!(Loading::default().text(), None);
    }
}
