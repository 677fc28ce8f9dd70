//! Checks for ONNX Runtime, the CPU reference that verifies engines; without it rten does, which is part of this tool.

use super::{Examination, Finding, Purpose};
use crate::backend::BackendError;
use crate::backend::cpu::{self, Named};
use crate::backend::isolated::Isolated;
use crate::backend::onnxruntime::{
    OnnxRuntime,
    library::{self, Broken, Found, Library, SET_UP, SONAME},
};
use crate::confined;

const ID: &str = "reference";
/// Folder in which our package installs ONNX Runtime.
const PACKAGE: &str = "/usr/lib/watus-build";

pub(super) fn check(examination: &Examination) -> Finding {
    let found = if examination.root.live { live() } else { Ok(in_image(examination)) };
    match found {
        Ok(Found::Ready(library)) => Finding::ok(ID, format!("{library} verifies engines")),
        Ok(Found::Absent) => by_rten(examination),
        Ok(Found::Broken(broken)) if broken.named => {
            Finding::fail(ID, broken.to_string(), &[&broken.mend()], &[Purpose::Build])
        }
        Ok(Found::Broken(broken)) => {
            Finding::warn(ID, format!("{broken}; rten verifies engines instead"), &[&broken.mend()])
        }
        Err(BackendError::Unavailable { what, help }) => Finding::fail(ID, what, &[&help], &[Purpose::Build]),
        Err(error) => Finding::fail(ID, error.to_string(), &[], &[Purpose::Build]),
    }
}

/// Opens the library in a child process, so that a crash in it does not end this examination.
fn live() -> Result<Found, BackendError> {
    match confined::program() {
        Some(program) => Isolated::new(program.to_owned()).library(),
        None => Ok(OnnxRuntime::look()),
    }
}

fn by_rten(examination: &Examination) -> Finding {
    let wanted = match (examination.root.live, cpu::named_engine()) {
        (true, Ok(Some(Named::Rten))) => Some(cpu::VARIABLE),
        (true, _) if std::env::var_os(library::VARIABLE).is_some() => Some(library::VARIABLE),
        _ => None,
    };
    match wanted {
        Some(name) => Finding::ok(ID, format!("rten, which is built in, verifies engines, as {name} says")),
        None => Finding::warn(
            ID,
            "no ONNX Runtime: rten, which is built in, verifies engines; it refuses models that it would compute wrongly",
            &[&format!("{SET_UP}   # in watus-build's sources; its package brings ONNX Runtime along")],
        ),
    }
}

/// Searches the files of an image: users' data folders, our package's, then the system's.
fn in_image(examination: &Examination) -> Found {
    let root = examination.root;
    let architecture = &examination.platform.architecture;
    let mut homes = vec!["/root".to_owned()];
    homes.extend(root.list("/home").into_iter().map(|user| format!("/home/{user}")));
    // By the root's own reading, which follows an image's links within it.
    let in_folder = |folder: String| root.find(&[folder], library::FILE).into_iter().max();
    let in_data = |home: &String| {
        let data = format!("{home}/.local/share/watus-build");
        let folders = root.list(&data).into_iter().filter(|name| name.starts_with("onnxruntime-")).rev();
        let mut whole =
            folders.map(|name| format!("{data}/{name}")).filter(|path| root.exists(&format!("{path}/.complete")));
        whole.find_map(|path| in_folder(format!("{path}/lib")))
    };
    let own = homes.iter().find_map(in_data);
    let folders = [
        "/usr/local/lib".to_owned(),
        format!("/usr/lib/{architecture}-linux-gnu"),
        "/usr/lib64".to_owned(),
        "/usr/lib".to_owned(),
    ];
    let packaged = || in_folder(PACKAGE.to_owned());
    let system = || folders.iter().map(|folder| format!("{folder}/{SONAME}")).find(|place| root.exists(place));
    let Some(path) = own.or_else(packaged).or_else(system) else { return Found::Absent };
    let Some(real) = root.path(&path).filter(|real| real.is_file()) else {
        return Found::Broken(Broken { path, why: "its link leads to no file".to_owned(), named: false });
    };
    let version = real.file_name().and_then(|name| library::version(&name.to_string_lossy()));
    let old = version.as_deref().filter(|version| library::is_too_old(version)).map(library::too_old);
    match library::fault(&real, architecture).or(old) {
        Some(why) => Found::Broken(Broken { path, why, named: false }),
        None => Found::Ready(Library { path, version }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::super::{Level, Root, examine};
    use super::*;

    /// The finding about the reference in an image that `make` fills.
    fn judged(make: impl FnOnce(&Path)) -> Finding {
        let image = tempfile::tempdir().unwrap();
        fs::create_dir_all(image.path().join(SYSTEM)).unwrap();
        make(image.path());
        let report = examine(&Root::at(image.path()));
        report.findings.into_iter().find(|finding| finding.id == ID).unwrap()
    }

    /// The ELF header of a shared library for `machine`.
    fn elf(machine: u8) -> Vec<u8> {
        let mut bytes = vec![0; 128];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (bytes[16], bytes[18], bytes[32], bytes[54], bytes[56]) = (3, machine, 64, 56, 1);
        (bytes[64], bytes[96]) = (1, 128);
        bytes
    }

    const AARCH64: u8 = 183;
    const SYSTEM: &str = "usr/lib/aarch64-linux-gnu";

    fn set_up(image: &Path, bytes: &[u8]) {
        let folder = image.join("home/watus/.local/share/watus-build/onnxruntime-1.32.0");
        fs::create_dir_all(folder.join("lib")).unwrap();
        fs::write(folder.join(".complete"), "").unwrap();
        fs::write(folder.join("lib/libonnxruntime.so.1.32.0"), bytes).unwrap();
    }

    #[test]
    fn an_image_is_judged_by_its_files() {
        type Make<'a> = &'a dyn Fn(&Path);
        let own = "/home/watus/.local/share/watus-build/onnxruntime-1.32.0/lib/libonnxruntime.so.1.32.0";
        let cases: [(Make<'_>, Level, String); 10] = [
            (&|_| {}, Level::Warn, "no ONNX Runtime: rten".to_owned()),
            (&|image| set_up(image, &elf(AARCH64)), Level::Ok, format!("ONNX Runtime 1.32.0 ({own}) verifies engines")),
            (
                &|image| set_up(image, &elf(62)),
                Level::Warn,
                format!(
                    "ONNX Runtime ({own}) cannot be used: it is for x86_64, this machine is aarch64; rten verifies"
                ),
            ),
            (&|image| set_up(image, &elf(AARCH64)[..90]), Level::Warn, "it is cut off after 90 bytes".to_owned()),
            (&|image| set_up(image, b"<html>"), Level::Warn, "it is no ELF file".to_owned()),
            (&|image| set_up(image, b""), Level::Warn, "it is no ELF file".to_owned()),
            (
                &|image| {
                    fs::write(image.join(SYSTEM).join("libonnxruntime.so.1.16.3"), elf(AARCH64)).unwrap();
                    symlink("libonnxruntime.so.1.16.3", image.join(SYSTEM).join(SONAME)).unwrap();
                },
                Level::Warn,
                "it is version 1.16.3, 1.17 is the oldest that is taken".to_owned(),
            ),
            (
                &|image| {
                    // What /opt of this machine holds does not matter.
                    fs::create_dir(image.join("opt")).unwrap();
                    fs::write(image.join("opt/libonnxruntime.so.1.21.0"), elf(AARCH64)).unwrap();
                    symlink("/opt/libonnxruntime.so.1.21.0", image.join(SYSTEM).join(SONAME)).unwrap();
                },
                Level::Ok,
                "ONNX Runtime 1.21.0 (/usr/lib/aarch64-linux-gnu/libonnxruntime.so.1)".to_owned(),
            ),
            (
                &|image| {
                    let folder = image.join(&PACKAGE[1..]);
                    fs::create_dir(&folder).unwrap();
                    fs::write(folder.join("libonnxruntime.so.1.32.0"), elf(AARCH64)).unwrap();
                    symlink("libonnxruntime.so.1.32.0", folder.join(SONAME)).unwrap();
                    // The package's goes first.
                    fs::write(image.join(SYSTEM).join(SONAME), elf(62)).unwrap();
                },
                Level::Ok,
                "ONNX Runtime 1.32.0 (/usr/lib/watus-build/libonnxruntime.so.1.32.0)".to_owned(),
            ),
            (
                &|image| symlink("nowhere", image.join(SYSTEM).join(SONAME)).unwrap(),
                Level::Warn,
                "its link leads to no file".to_owned(),
            ),
        ];
        for (make, level, said) in cases {
            let finding = judged(make);
            assert_eq!(finding.level, level, "{finding:?}");
            assert!(finding.seen.contains(&said), "{said}: {finding:?}");
            let mended = finding.mend.iter().any(|line| line.starts_with(SET_UP));
            assert_eq!(mended, level != Level::Ok, "{finding:?}");
        }
    }
}
