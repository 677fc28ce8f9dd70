//! Tegra SoCs and Jetson modules: what they are called, and what makes one slower than another of the same name.
//!
//! Part numbers: jetson_stats, `jtop/core/jetson_variables.py`, read 2026-11-23. Cores and clocks of AGX Orin:
//! wiki.seeedstudio.com, reComputer Robotics J5011 and J5012, read 2026-11-27 (1792 at 930 MHz, 2048 at 1.3 GHz); a
//! multiprocessor of compute capability 8.7 has 128 cores (CUDA C++ Programming Guide, "Compute Capabilities").

use super::Root;

/// A system on a chip.
pub(super) struct Soc {
    /// Its string in the device tree's "compatible".
    compatible: &'static str,
    pub name: &'static str,
    pub capability: &'static str,
    /// First digits of its modules' part numbers.
    boards: &'static [&'static str],
}

const SOCS: &[Soc] = &[
    Soc { compatible: "nvidia,tegra234", name: "Orin (Ampere)", capability: "8.7", boards: &["3701", "3767"] },
    Soc { compatible: "nvidia,tegra264", name: "Thor (Blackwell)", capability: "11.0", boards: &["3834"] },
    Soc { compatible: "nvidia,tegra194", name: "Xavier (Volta)", capability: "7.2", boards: &["2888", "3668"] },
];

/// A module: SoC, memory and power supply on a board of its own.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TegraModule {
    /// Part number, board and SKU: "3701-0004".
    pub part: &'static str,
    pub name: &'static str,
    pub gpu: &'static str,
}

const MODULES: &[TegraModule] = &[
    TegraModule {
        part: "3701-0000",
        name: "Jetson AGX Orin of the first developer kit",
        gpu: "16 multiprocessors at up to 1300 MHz",
    },
    TegraModule {
        part: "3701-0004",
        name: "Jetson AGX Orin 32GB",
        gpu: "14 multiprocessors at up to 930 MHz; figures published for AGX Orin are mostly of the 64GB module (16 at 1300)",
    },
    TegraModule { part: "3701-0005", name: "Jetson AGX Orin 64GB", gpu: "16 multiprocessors at up to 1300 MHz" },
    TegraModule { part: "3701-0008", name: "Jetson AGX Orin Industrial", gpu: "16 multiprocessors" },
    TegraModule { part: "3767-0000", name: "Jetson Orin NX 16GB", gpu: "8 multiprocessors" },
    TegraModule { part: "3767-0001", name: "Jetson Orin NX 8GB", gpu: "8 multiprocessors" },
    TegraModule { part: "3767-0003", name: "Jetson Orin Nano 8GB", gpu: "8 multiprocessors" },
    TegraModule { part: "3767-0004", name: "Jetson Orin Nano 4GB", gpu: "4 multiprocessors" },
    TegraModule { part: "3767-0005", name: "Jetson Orin Nano 8GB (developer kit)", gpu: "8 multiprocessors" },
    TegraModule { part: "3834-0000", name: "Jetson T4000", gpu: "Blackwell" },
    TegraModule { part: "3834-0008", name: "Jetson T5000", gpu: "Blackwell" },
];

/// Board and SKU of the boot configuration's line `TNSPEC 3701-300-0004-M.0-1-0-jetson-agx-orin-devkit-`.
fn of_boot_control(text: &str) -> Option<String> {
    let spec = text.lines().find_map(|line| line.strip_prefix("TNSPEC "))?;
    let mut parts = spec.trim().split('-');
    let (board, sku) = (parts.next()?, parts.nth(1)?);
    Some(format!("{board}-{sku}"))
}

/// The module of a machine. The boot configuration has what its EEPROM says, a carrier board's device tree may name the
/// developer kit's module; an image has no device tree, a container no boot configuration.
pub(super) fn module(root: &Root) -> Option<&'static TegraModule> {
    let part = root.read("/etc/nv_boot_control.conf").and_then(|text| of_boot_control(&text));
    let by_part = part.and_then(|part| MODULES.iter().find(|module| module.part == part));
    by_part.or_else(|| {
        let compatible = root.read("/proc/device-tree/compatible")?;
        MODULES.iter().find(|module| compatible.contains(&format!("p{}", module.part)))
    })
}

/// The SoC of a machine.
pub(super) fn soc(root: &Root) -> Option<&'static Soc> {
    let compatible = root.read("/proc/device-tree/compatible").unwrap_or_default();
    let told = SOCS.iter().find(|soc| compatible.lines().any(|line| line == soc.compatible));
    told.or_else(|| {
        let part = module(root)?.part;
        SOCS.iter().find(|soc| soc.boards.iter().any(|board| part.starts_with(board)))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn modules_are_told_by_part_number() {
        let cases = [
            ("nvidia,p3737-0000+p3701-0004\0nvidia,tegra234\0", "", Some("Jetson AGX Orin 32GB"), Some("8.7")),
            ("nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0", "", Some("Jetson AGX Orin 64GB"), Some("8.7")),
            // A carrier board with the developer kit's device tree.
            (
                "nvidia,p3737-0000+p3701-0000\0nvidia,tegra234\0",
                "TNSPEC 3701-300-0004-M.0-1-0-jetson-agx-orin-devkit-\nTEGRA_CHIPID 0x23\n",
                Some("Jetson AGX Orin 32GB"),
                Some("8.7"),
            ),
            // An image that is not running.
            ("", "TNSPEC 3834-400-0008-J.0-1-0-jetson-agx-thor-devkit-\n", Some("Jetson T5000"), Some("11.0")),
            ("acme,robot\0nvidia,tegra234\0", "TNSPEC 3701\n", None, Some("8.7")),
            ("", "TNSPEC 9999-300-0004-x\n", None, None),
        ];
        for (compatible, boot, name, capability) in cases {
            let image = tempfile::tempdir().unwrap();
            fs::create_dir_all(image.path().join("proc/device-tree")).unwrap();
            fs::create_dir_all(image.path().join("etc")).unwrap();
            fs::write(image.path().join("proc/device-tree/compatible"), compatible).unwrap();
            fs::write(image.path().join("etc/nv_boot_control.conf"), boot).unwrap();
            let root = Root::at(image.path());
            assert_eq!(module(&root).map(|module| module.name), name, "{compatible} {boot}");
            assert_eq!(soc(&root).map(|soc| soc.capability), capability, "{compatible} {boot}");
        }
    }
}
