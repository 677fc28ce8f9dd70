//! Checks how packages of TensorRT fit together: those of dpkg among themselves, and pip's with JetPack's.

use std::collections::BTreeMap;

use super::advice::{here, upgrade};
use super::platform::numbers;
use super::{Examination, Finding, Package, Purpose};

/// Folders of a Python package with TensorRT's libraries: up to 8.5 (contents of the wheel `tensorrt` 8.5.3.1 on the Python
/// Package Index, read 2026-11-27), since 8.6 (paths in the reports of its users on GitHub, read 2026-11-27).
pub(super) const WHEEL_FOLDERS: [&str; 2] = ["tensorrt", "tensorrt_libs"];

/// First JetPack 7 that takes TensorRT's SBSA build, and the first TensorRT that is made for it
/// (docs.nvidia.com/deeplearning/tensorrt/11.4.1, migration/tensorrt-10x-to-11x-jetson, read 2026-11-27).
const SBSA_L4T: (u32, u32, u32) = (39, 2, 2);
const SBSA_TENSORRT: [u32; 3] = [11, 4, 1];

pub(super) fn check(examination: &Examination) -> Vec<Finding> {
    if !examination.platform.is_jetson() {
        return Vec::new();
    }
    [debian(examination), headers(examination), pip(examination)].into_iter().flatten().collect()
}

/// A Python package of TensorRT.
pub(super) struct Wheel {
    /// Folder of the packages, such as `/usr/local/lib/python3.10/dist-packages`.
    pub folder: String,
    pub name: String,
    pub version: String,
}

/// TensorRT's Python packages.
pub(super) fn wheels(examination: &Examination) -> Vec<Wheel> {
    let root = examination.root;
    let mut libraries = vec!["/usr/local/lib".to_owned(), "/root/.local/lib".to_owned(), "/opt/venv/lib".to_owned()];
    libraries.extend(root.list("/home").into_iter().map(|user| format!("/home/{user}/.local/lib")));
    let mut wheels = Vec::new();
    for library in libraries {
        for python in root.list(&library).into_iter().filter(|name| name.starts_with("python3")) {
            for packages in ["dist-packages", "site-packages"] {
                let folder = format!("{library}/{python}/{packages}");
                let found = root.list(&folder).into_iter().filter_map(|entry| {
                    let (name, version) = entry.strip_suffix(".dist-info")?.split_once('-')?;
                    let ours = name.starts_with("tensorrt") && !name.starts_with("tensorrt_rtx");
                    ours.then(|| Wheel { folder: folder.clone(), name: name.to_owned(), version: version.to_owned() })
                });
                wheels.extend(found);
            }
        }
    }
    wheels
}

/// The wheels on the Python Package Index were not built for Tegra (ultralytics/ultralytics#18799, read 2026-11-23) before
/// TensorRT 11.4.1, whose SBSA build is the one for JetPack 7.2.2 and later.
fn pip(examination: &Examination) -> Option<Finding> {
    let sbsa = examination.platform.l4t_numbers() >= Some(SBSA_L4T);
    let made_for = |wheel: &Wheel| sbsa && numbers(&wheel.version).as_slice() >= SBSA_TENSORRT.as_slice();
    let wheels = wheels(examination);
    let text = |wheel: &Wheel| format!("pip's {}-{} in {}", wheel.name, wheel.version, wheel.folder);
    if let Some(wheel) = wheels.iter().find(|wheel| !made_for(wheel)) {
        let uninstall = "python3 -m pip uninstall tensorrt tensorrt-cu12 tensorrt-cu12-libs tensorrt-cu12-bindings";
        let replace = match sbsa {
            true => "python3 -m pip install 'tensorrt>=11.4.1'   # its SBSA build is for JetPack 7.2.2 and later",
            false => "python3 -m venv --system-site-packages VENV   # sees JetPack's own tensorrt",
        };
        let seen = format!("{} hides JetPack's TensorRT from Python and is not built for a Jetson", text(wheel));
        return Some(Finding::warn("pip-tensorrt", seen, &[uninstall, replace]));
    }
    let wheel = wheels.first()?;
    Some(Finding::ok("pip-tensorrt", format!("{} is the SBSA build, which this JetPack takes", text(wheel))))
}

/// A package's name without the major version at its end, and that.
fn split_major(name: &str) -> Option<(&str, u32)> {
    let stem = name.trim_end_matches(|digit: char| digit.is_ascii_digit());
    Some((stem, name[stem.len()..].parse().ok()?))
}

/// TensorRT's library packages by their major version: libnvinfer10, libnvinfer-plugin10, libnvonnxparsers10. Those of two
/// major versions may be installed beside each other.
fn libraries<'a>(examination: &'a Examination) -> BTreeMap<u32, Vec<(&'a str, &'a Package)>> {
    let mut found: BTreeMap<u32, Vec<(&str, &Package)>> = BTreeMap::new();
    for (name, package) in &examination.packages {
        if let Some((stem, major)) = split_major(name)
            && (stem.starts_with("libnvinfer") || stem.starts_with("libnvonnxparsers"))
        {
            found.entry(major).or_default().push((name.as_str(), package));
        }
    }
    found
}

/// The versions of packages, the first three numbers, each once.
fn versions<'a>(packages: impl IntoIterator<Item = &'a Package>) -> Vec<String> {
    let three = |package: &Package| {
        let text: Vec<String> = numbers(package.upstream()).iter().take(3).map(u32::to_string).collect();
        text.join(".")
    };
    let mut found: Vec<String> = packages.into_iter().map(three).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Half an upgrade breaks every engine, and a held package stays behind when JetPack is upgraded.
fn debian(examination: &Examination) -> Option<Finding> {
    let libraries = libraries(examination);
    let ours = |name: &str| ["tensorrt", "libnvinfer", "libnvonnxparsers"].iter().any(|begin| name.starts_with(begin));
    let held = examination.packages.iter().filter(|(name, package)| package.held && ours(name));
    let held: Vec<&str> = held.map(|(name, _)| name.as_str()).collect();
    let unhold = here(&examination.platform, &format!("apt-mark unhold {}", held.join(" ")));
    let upgrade = upgrade(&examination.platform);
    let mut of_majors = libraries.values().map(|packages| versions(packages.iter().map(|(_, package)| *package)));
    if let Some(mixed) = of_majors.find(|versions| versions.len() > 1) {
        let seen = format!("TensorRT libraries of different versions: {}", mixed.join(", "));
        let mend: &[&str] = if held.is_empty() { &[upgrade] } else { &[&unhold, upgrade] };
        return Some(Finding::fail("apt-tensorrt", seen, mend, &Purpose::ALL));
    }
    if held.is_empty() {
        return None;
    }
    let seen = format!("held by apt: {}", held.join(", "));
    let all = libraries.values().flatten().map(|(_, package)| *package);
    let behind = examination.platform.release().is_some_and(|release| {
        let versions = versions(all);
        !versions.is_empty() && versions.iter().all(|version| !release.takes(version))
    });
    Some(match behind {
        true => Finding::warn("apt-tensorrt", format!("{seen}, and not what this JetPack ships"), &[&unhold, upgrade]),
        false => Finding::ok("apt-tensorrt", format!("{seen} (so engines stay valid)")),
    })
}

/// What is compiled with one TensorRT's headers opens no older one.
fn headers(examination: &Examination) -> Option<Finding> {
    let package = examination.packages.get("libnvinfer-dev")?;
    let libraries = libraries(examination);
    let there = versions(libraries.values().flatten().map(|(_, package)| *package));
    let of_headers = versions([package]);
    if there.is_empty() || of_headers.iter().all(|version| there.contains(version)) {
        return None;
    }
    let seen = format!(
        "headers of TensorRT {}, libraries of {}: a watus-build compiled here may not open them",
        of_headers.join(", "),
        there.join(", ")
    );
    Some(Finding::warn("apt-headers", seen, &[upgrade(&examination.platform)]))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{Finding, Level, Root, examine};

    /// The finding `id` on a Jetson with these dpkg packages (name, state, version) and a wheel.
    fn found(id: &str, l4t: &str, packages: &[(&str, &str, &str)], wheel: Option<&str>) -> Option<Finding> {
        let image = tempfile::tempdir().unwrap();
        for folder in ["etc", "var/lib/dpkg", "usr/lib/aarch64-linux-gnu"] {
            fs::create_dir_all(image.path().join(folder)).unwrap();
        }
        fs::write(image.path().join("etc/nv_tegra_release"), l4t).unwrap();
        let text = packages.iter().map(|(name, state, version)| {
            format!("Package: {name}\nStatus: {state} ok installed\nVersion: {version}\n")
        });
        fs::write(image.path().join("var/lib/dpkg/status"), text.collect::<Vec<_>>().join("\n")).unwrap();
        if let Some(wheel) = wheel {
            let folder = image.path().join("home/robot/.local/lib/python3.12/site-packages");
            fs::create_dir_all(folder.join(format!("{wheel}.dist-info"))).unwrap();
        }
        examine(&Root::at(image.path())).findings.into_iter().find(|finding| finding.id == id)
    }

    const R36: &str = "# R36 (release), REVISION: 4.4, GCID: 1";
    const R39_2_1: &str = "# R39 (release), REVISION: 2.1, GCID: 1";
    const R39_2_2: &str = "# R39 (release), REVISION: 2.2, GCID: 1";

    #[test]
    fn pips_tensorrt_is_judged_by_the_release() {
        for (l4t, wheel, level, said) in [
            (R36, "tensorrt_cu12-10.0.1", Level::Warn, "is not built for a Jetson"),
            (R39_2_1, "tensorrt_cu13-11.4.1", Level::Warn, "is not built for a Jetson"),
            (R39_2_2, "tensorrt_cu13-11.3.0", Level::Warn, "is not built for a Jetson"),
            (R39_2_2, "tensorrt_cu13_libs-11.4.1.9", Level::Ok, "is the SBSA build, which this JetPack takes"),
        ] {
            let finding = found("pip-tensorrt", l4t, &[], Some(wheel)).unwrap();
            assert_eq!((finding.level, finding.seen.contains(said)), (level, true), "{l4t} {wheel}: {finding:?}");
            assert_eq!(finding.mend.is_empty(), level == Level::Ok, "{finding:?}");
        }
        assert_eq!(found("pip-tensorrt", R36, &[], Some("tensorrt_rtx-1.6.1")), None);
        assert_eq!(found("pip-tensorrt", R36, &[], None), None);
    }

    #[test]
    fn packages_that_belong_together_are_of_one_version() {
        let (ten, eleven) = ("10.16.2.10-1+cuda13.2", "11.4.1.9-1+cuda13.2");
        type Packages<'a> = &'a [(&'a str, &'a str, &'a str)];
        let cases: [(Packages<'_>, Option<Level>, &str); 7] = [
            (&[("libnvinfer10", "install", ten), ("libnvonnxparsers10", "install", ten)], None, ""),
            // JetPack's and the SBSA package beside it.
            (&[("libnvinfer10", "install", ten), ("libnvinfer11", "install", eleven)], None, ""),
            (
                &[("libnvinfer10", "install", ten), ("libnvonnxparsers10", "install", "10.13.3.9-1")],
                Some(Level::Fail),
                "different versions: 10.13.3, 10.16.2",
            ),
            (&[("libnvinfer10", "hold", ten), ("tensorrt", "hold", ten)], Some(Level::Ok), "engines stay valid"),
            (&[("libnvinfer10", "hold", "10.13.3.9-1")], Some(Level::Warn), "not what this JetPack ships"),
            (&[("libnvinfer-dev", "install", ten)], None, ""),
            (&[("libnvinferż", "install", "x"), ("libnvinfer99999999999", "install", "1")], None, ""),
        ];
        for (packages, level, said) in cases {
            let finding = found("apt-tensorrt", R39_2_2, packages, None);
            assert_eq!(finding.as_ref().map(|finding| finding.level), level, "{packages:?}: {finding:?}");
            assert!(finding.is_none_or(|finding| finding.seen.contains(said)), "{packages:?}");
        }
        let headers = |version: &str| {
            let packages = [("libnvinfer10", "install", "10.3.0.30-1"), ("libnvinfer-dev", "install", version)];
            found("apt-headers", R36, &packages, None).map(|finding| (finding.level, finding.blocks))
        };
        assert_eq!(headers("10.7.0.23-1"), Some((Level::Warn, Vec::new())));
        assert_eq!(headers("10.3.0.30-1+cuda12.5"), None);
    }
}
