//! Lines in the forms that releases print, as they stand in public reports: rbonghi/jetson_stats issues 292 and 624 and pull request
//! 894, GDWR/jetson_exporter issue 14, the guide's own examples; numbers are changed.

use super::super::FreeBlocks;
use super::{Dialect, line, parse};

/// A JetPack 5 line of an AGX Orin.
const R35: &str = "RAM 4321/62801MB (lfb 1759x4MB) SWAP 19/31400MB (cached 0MB) CPU [0%@729,12%@729,off,off] EMC_FREQ 0%@2133 \
                   GR3D_FREQ 0%@[114,114] VIC_FREQ 729 APE 174 CV0@-256C CPU@44.562C Tboard@32C tj@44.343C \
                   VDD_GPU_SOC 2340mW/2341mW VDD_CPU_CV 390mW/391mW VIN_SYS_5V0 4025mW/4026mW VDDQ_VDD2_1V8AO 301mW/302mW";
/// JetPack 6 of an Orin NX, and of an AGX Orin whose GPU sleeps.
const R36: [&str; 2] = [
    "RAM 6982/7620MB (lfb 5x1MB) SWAP 2640/16384MB (cached 202MB) CPU [97%@1984,95%@1984,88%@1984,93%@247] EMC_FREQ 18%@3199 \
     GR3D_FREQ 84%@[713] NVENC 1%@115 NVDEC 40%@115 NVJPG off VIC 31%@115 OFA off PVA0_FREQ off APE 174 cv0@63.031C cpu@65.562C \
     gpu@63.5C tj@65.562C VDD_IN 17946mW/15710mW VDD_CPU_GPU_CV 8896mW/7585mW VDD_SOC 3923mW/3515mW",
    "RAM 1/2MB (lfb 1x512kB) CPU [0%@729] EMC_FREQ 3% GR3D_FREQ 0% tj@52C VDD_GPU_SOC 2412mW/2412mW",
];
/// JetPack 7.0 of a Thor.
const R38: &str = "RAM 4208/125773MB (lfb 31x4MB) SWAP 0/2048MB (cached 0MB) CPU [1%@972,0%@2601] EMC_FREQ 0%@665 \
                   GR3D_FREQ @[0,0,0] NVENC0_FREQ @0 VIC off PVA0_FREQ off APE 300 cpu@34.468C tj@34.5C \
                   VDD_GPU 0mW/0mW VDD_CPU_SOC_MSS 4165mW/4165mW VIN_SYS_5V0 4126mW/4126mW VIN 12000mW/11000mW";
/// JetPack 7.2 of an AGX Orin.
const R39: &str = "RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,off] EMC_FREQ 3%@3199 GR3D_FREQ 12%@[1300,1300] NVENC0 off APE 174 \
                   cpu@52.968C/53.5C tj@52.968C/54C VDD_GPU_SOC 5139mW/5140mW/6001mW VDD_CPU_CV 3268mW/3269mW/4000mW \
                   VIN_SYS_5V0 5500mW/5501mW/5600mW";

#[test]
fn lines_are_written_as_they_were_read() {
    let all =
        [(R35, Dialect::R35), (R36[0], Dialect::R36), (R36[1], Dialect::R36), (R38, Dialect::R38), (R39, Dialect::R39)];
    for (text, dialect) in all {
        assert_eq!(line(&parse(text).unwrap(), dialect), text);
        // With the date of `tegrastats` without `--quiet`.
        assert_eq!(parse(&format!("07-31-2026 14:58:05 {text}\n")), parse(text));
    }
}

#[test]
fn values_have_their_meaning() {
    let told = parse(R36[0]).unwrap();
    let memory = told.memory.unwrap();
    assert_eq!((memory.used_bytes, memory.total_bytes), (6982 << 20, 7620 << 20));
    assert_eq!(memory.largest_free_block, Some(FreeBlocks { bytes: 1 << 20, count: 5 }));
    assert_eq!(told.swap.unwrap().cached_bytes, 202 << 20);
    assert_eq!((told.gpus[0].load_percent, told.gpus[0].clock_mhz()), (Some(84.0), Some(713)));
    assert_eq!(told.cpus[3].as_ref().unwrap().clock_mhz, Some(247));
    let decoder = told.engines.iter().find(|engine| engine.name == "NVDEC").unwrap();
    assert_eq!((decoder.on, decoder.load_percent, decoder.clock_mhz), (true, Some(40.0), Some(115)));
    // VDD_IN is the whole, of which the others are parts.
    assert_eq!(told.power_milliwatts, Some(17_946));
    let told = parse(R35).unwrap();
    // The memory's rail is part of VIN_SYS_5V0.
    assert_eq!(told.power_milliwatts, Some(2340 + 390 + 4025));
    assert_eq!((told.temperatures[0].name.as_str(), told.temperatures[0].celsius), ("CV0", None));
    assert_eq!(told.cpus[2], None);
    assert_eq!(parse(R38).unwrap().power_milliwatts, Some(12_000));
    assert_eq!(parse(R38).unwrap().gpus[0].load_percent, None);
    let told = parse(R39).unwrap();
    assert_eq!((told.rails[0].max_milliwatts, told.temperatures[0].max_celsius), (Some(6001), Some(53.5)));
    assert_eq!(told.hottest().unwrap().name, "tj");
}

/// What other releases write differently, and the same in today's words.
#[test]
fn older_forms_are_read() {
    for (text, same) in [
        ("RAM 1/2MB GR3D_FREQ 0%@114 GR3D2_FREQ 0%@115", "RAM 1/2MB GR3D_FREQ 0%@[114,115]"),
        ("RAM 1/2MB GR3D_FREQ 5%@[114, 115]", "RAM 1/2MB GR3D_FREQ 5%@[114,115]"),
        ("CPU [0%,5%,off]@2601 EMC_FREQ @4266", "CPU [0%@2601,5%@2601,off] EMC_FREQ @4266"),
        ("RAM 1/2MB IRAM 0/252kB(lfb 252kB) MTS fg 0% bg 1% POM_5V_GPU 554/600", "RAM 1/2MB POM_5V_GPU 554mW/600mW"),
        ("RAM 1/2MB NC 0mW/0mW FUTURE_TOKEN value VIC off", "RAM 1/2MB VIC off"),
    ] {
        assert_eq!(line(&parse(text).unwrap(), Dialect::R36), same);
    }
}

#[test]
fn nonsense_is_none_and_never_panics() {
    for text in [
        "",
        "Unknown command",
        "RAM",
        "RAM x/yMB CPU [bad,off] GR3D_FREQ 101%",
        "RAM 99999999999999999999/1MB",
        "RAM 18446744073709551615/18446744073709551615GB",
        "CPU [",
        "CPU ]@[",
        "ż@ÿC RAM ż/ÿMB (lfb żxÿMB)",
        &"RAM 1/2MB ".repeat(5000),
    ] {
        assert_eq!(parse(text), None, "{text:.40}");
    }
    // What is odd is left out, the rest is kept.
    let told =
        parse("RAM 3/4MB (lfb 9999999999999999999999x4MB) EMC_FREQ 120%@7 tj@NaNC tj@1e999C VDD_IN -5mW/3mW").unwrap();
    assert_eq!((told.memory.unwrap().largest_free_block, told.temperatures.len(), told.rails.len()), (None, 0, 0));
    assert_eq!(told.emc.unwrap().load_percent, None);
}

#[test]
fn releases_have_their_dialects() {
    let all = [("35.4.1", Dialect::R35), ("32.7.4", Dialect::R35), ("36.4.4", Dialect::R36), ("38.2.0", Dialect::R38)];
    for (release, dialect) in all.into_iter().chain([("39.2.0", Dialect::R39), ("41.0", Dialect::R39)]) {
        assert_eq!(Dialect::of_l4t(release), Some(dialect), "{release}");
    }
    assert_eq!(Dialect::of_l4t("x"), None);
}
