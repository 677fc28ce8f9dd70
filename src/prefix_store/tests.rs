//! What is kept, what goes, and what is refused.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, SystemTime};

use super::*;
use crate::spec::KvCache;
use crate::tensor::DType;

/// More layers than are read at a time.
const LAYERS: usize = TOGETHER + 3;
const LARGE: u64 = 1 << 30;

fn layout() -> KvLayout {
    let (elements, dtype) = (DType::Float32, DType::Float32);
    KvLayout { layers: LAYERS, kv_heads: 2, head_dim: 4, elements, dtype, kv_cache: KvCache::Auto }
}

fn block(layer: usize, tokens: &[u32]) -> Vec<u8> {
    let size = layout().layer_bytes(tokens.len()).unwrap();
    (0..size).map(|at| (at + 7 * layer + tokens[0] as usize).to_le_bytes()[0]).collect()
}

fn store(folder: &Path, limit: u64) -> PrefixStore {
    StateDir::open(folder).unwrap().store("e".to_owned(), layout(), limit).unwrap()
}

/// Gives the writer some layers of a prefix.
fn give(store: &PrefixStore, prefix: &Arc<PendingPrefix>, layers: std::ops::Range<usize>) {
    for layer in layers {
        let mut offered = store.offer(prefix, layer, block(layer, &prefix.header.tokens));
        while let Offered::Later(block) = offered {
            std::thread::sleep(Duration::from_millis(1));
            offered = store.offer(prefix, layer, block);
        }
        assert_eq!(offered, Offered::Taken);
    }
}

fn write(store: &PrefixStore, scope: u64, tokens: &[u32]) {
    give(store, &store.prepare(scope, tokens.to_vec()).unwrap(), 0..LAYERS);
}

/// The stored prefixes, the most recently used first.
fn kept(store: &PrefixStore) -> Vec<(u64, Vec<u32>)> {
    store.recent(usize::MAX).iter().map(|prefix| (prefix.scope, prefix.tokens.to_vec())).collect()
}

/// The files with prefixes.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join(FOLDER)).unwrap().map(|entry| entry.unwrap());
    let ours = entries.filter(|entry| format::is_stored(entry.file_name().to_str().unwrap()));
    ours.map(|entry| entry.path()).collect()
}

/// Sets when a prefix was used, in seconds ago.
fn used(store: &PrefixStore, folder: &Path, tokens: &[u32], ago: u64) {
    let all = store.recent(usize::MAX);
    let name = &all.iter().find(|prefix| *prefix.tokens == *tokens).unwrap().name;
    let file = File::open(folder.join(FOLDER).join(name)).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(ago)).unwrap();
}

#[test]
fn what_is_kept_is_found_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = [5, 6, 7, 8];
    write(&store(folder.path(), LARGE), 3, &tokens);
    let mut store = store(folder.path(), LARGE);
    let usable = |prefix: &StoredPrefix| prefix.tokens.iter().zip([5, 6, 9]).take_while(|(a, b)| *a == b).count();
    let (prefix, count) = store.longest(usable).unwrap();
    assert_eq!((prefix.scope, &*prefix.tokens, count), (3, &tokens[..], 2));
    let mut layers = 0;
    let taken = store.load(&prefix, |layer, bytes| {
        assert_eq!((layer, bytes), (layers, &block(layer, &tokens)[..]));
        layers += 1;
        Ok::<(), ()>(())
    });
    assert_eq!((taken, layers), (Ok(true), LAYERS));
    assert_eq!(
        store.load(&prefix, |layer, _| if layer == 2 { Err(layer) } else { Ok(()) }),
        Err(2),
        "its taker's error"
    );
    let bytes = fs::metadata(&files(folder.path())[0]).unwrap().len();
    assert_eq!(store.counts(), PrefixCounts { stored: 1, bytes, written: 0, loaded: 1 });
    // Nobody else may read any of it.
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder.path().join(FOLDER)), 0o700);
    for entry in fs::read_dir(folder.path().join(FOLDER)).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn the_damaged_and_the_foreign_go_and_what_is_not_ours_stays() {
    let folder = tempfile::tempdir().unwrap();
    let first = store(folder.path(), LARGE);
    (1..4).for_each(|scope| write(&first, scope, &[5, 6, 7]));
    drop(first);
    let all = files(folder.path());
    assert_eq!(all.len(), 3);
    // A header's byte; the end.
    let mut bytes = fs::read(&all[0]).unwrap();
    bytes[20] ^= 1;
    fs::write(&all[0], bytes).unwrap();
    let length = fs::metadata(&all[1]).unwrap().len();
    OpenOptions::new().write(true).open(&all[1]).unwrap().set_len(length - 1).unwrap();
    // Of a writer that was killed, and of somebody else.
    let name = all[0].file_name().unwrap().to_str().unwrap();
    let [left, mine] = [format!(".{name}.staging-1-0"), "notes.txt".to_owned()].map(|name| all[0].with_file_name(name));
    fs::write(&left, "x").unwrap();
    fs::write(&mine, "x").unwrap();
    assert_eq!(kept(&store(folder.path(), LARGE)).len(), 1);
    assert_eq!(files(folder.path()), [all[2].clone()]);
    assert!(!left.exists() && mine.exists());
    // Another layout, another engine.
    let other = KvLayout { kv_cache: KvCache::Int8, ..layout() };
    let store = |engine: &str, layout| StateDir::open(folder.path()).unwrap().store(engine.to_owned(), layout, LARGE);
    assert_eq!(kept(&store("e", layout()).unwrap()).len(), 1);
    assert!(kept(&store("e", other).unwrap()).is_empty());
    write(&store("e", layout()).unwrap(), 1, &[5, 6, 7]);
    assert!(kept(&store("f", layout()).unwrap()).is_empty());
    assert_eq!(files(folder.path()).len(), 0);
}

#[test]
fn a_layer_that_is_damaged_is_found_when_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    write(&store(folder.path(), LARGE), 1, &[5, 6, 7]);
    let path = &files(folder.path())[0];
    let mut bytes = fs::read(path).unwrap();
    let last = bytes.len() - 40; // within the last layer's block
    bytes[last] ^= 1;
    fs::write(path, bytes).unwrap();
    let mut store = store(folder.path(), LARGE);
    let prefix = store.recent(1).remove(0);
    let mut layers = Vec::new();
    let taken = store.load(&prefix, |layer, _| {
        layers.push(layer);
        Ok::<(), ()>(())
    });
    assert_eq!((taken, layers), (Ok(false), (0..LAYERS - 1).collect()));
    assert_eq!((kept(&store).len(), files(folder.path()).len()), (0, 0));
    // One that is gone already.
    assert_eq!(store.load(&prefix, |_, _| Ok::<(), ()>(())), Ok(false));
}

#[test]
fn those_used_longest_ago_make_room() {
    let folder = tempfile::tempdir().unwrap();
    let first = store(folder.path(), LARGE);
    let tokens = [[1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6]];
    tokens[..3].iter().for_each(|tokens| write(&first, 1, tokens));
    drop(first);
    let one = fs::metadata(&files(folder.path())[0]).unwrap().len();
    let mut second = store(folder.path(), LARGE);
    for (tokens, ago) in tokens.iter().zip([10, 30, 20]) {
        used(&second, folder.path(), tokens, ago);
    }
    drop(second);
    second = store(folder.path(), LARGE);
    let order = |store: &PrefixStore| kept(store).into_iter().map(|(_, tokens)| tokens[0]).collect::<Vec<_>>();
    assert_eq!(order(&second), [1, 3, 2]);
    // What is read is used, also for the next start.
    let oldest = second.recent(3).remove(2);
    assert_eq!(second.load(&oldest, |_, _| Ok::<(), ()>(())), Ok(true));
    assert_eq!(order(&second), [2, 1, 3]);
    drop(second);
    let third = store(folder.path(), 3 * one + 10);
    assert_eq!(order(&third), [2, 1, 3]);
    used(&third, folder.path(), &tokens[1], 5);
    write(&third, 1, &tokens[3]);
    drop(third);
    assert_eq!(order(&store(folder.path(), 3 * one + 10)), [4, 2, 1]);
    // A smaller limit holds at once.
    let fourth = store(folder.path(), 2 * one + 10);
    assert_eq!(order(&fourth), [4, 2]);
    assert_eq!(files(folder.path()).len(), 2);
    assert!(fourth.prepare(1, vec![1; 100]).is_none(), "larger than all may be");
}

#[test]
fn a_longer_prefix_takes_the_place_of_a_shorter_one_of_its_scope() {
    let folder = tempfile::tempdir().unwrap();
    let first = store(folder.path(), LARGE);
    for (scope, tokens) in [(1, &[5, 6][..]), (2, &[5, 6]), (1, &[5, 7]), (1, &[5, 6, 7])] {
        write(&first, scope, tokens);
    }
    drop(first);
    let mut have = kept(&store(folder.path(), LARGE));
    have.sort();
    assert_eq!(have, [(1, vec![5, 6, 7]), (1, vec![5, 7]), (2, vec![5, 6])]);
}

#[test]
fn what_is_given_up_appears_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let first = store(folder.path(), LARGE);
    let prefix = first.prepare(1, vec![5, 6, 7]).unwrap();
    give(&first, &prefix, 0..4);
    first.abandon(&prefix);
    assert_eq!(first.offer(&prefix, 4, block(4, &[5, 6, 7])), Offered::Refused);
    // Another takes its place, and one whose layers have the wrong size is refused.
    give(&first, &first.prepare(1, vec![6, 7, 8]).unwrap(), 0..3);
    write(&first, 1, &[7, 8, 9]);
    let odd = first.prepare(1, vec![8, 9, 10]).unwrap();
    while let Offered::Taken | Offered::Later(_) = first.offer(&odd, 0, vec![1]) {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(first);
    assert_eq!(kept(&store(folder.path(), LARGE)), [(1, vec![7, 8, 9])]);
    let left = fs::read_dir(folder.path().join(FOLDER)).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(left.into_iter().all(|name| !name.to_str().unwrap().contains("staging")));
}

#[test]
fn a_folder_is_one_servers_and_one_users() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("not/there/yet");
    let open = |place: &Path| StateDir::open(place).map(|state| state.secret());
    let first = StateDir::open(&place).unwrap();
    let error = open(&place).unwrap_err().to_string();
    assert!(error.contains("in use by another server") && error.contains("--state of its own"), "{error}");
    let secret = first.secret();
    drop(first);
    assert_eq!(open(&place).unwrap(), secret, "the same after a restart");
    assert_ne!(open(folder.path()).unwrap(), secret, "another folder, another secret");
    fs::write(place.join(FOLDER).join(SECRET), "short").unwrap();
    assert_ne!(open(&place).unwrap(), secret, "a damaged one is made again");
    let inner = place.join(FOLDER);
    fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)).unwrap();
    let error = open(&place).unwrap_err().to_string();
    assert!(error.contains("is open to other users"), "{error}");
    fs::remove_dir_all(&inner).unwrap();
    fs::create_dir(folder.path().join("else")).unwrap();
    std::os::unix::fs::symlink(folder.path().join("else"), &inner).unwrap();
    assert!(open(&place).unwrap_err().to_string().contains("is no folder"));
}
