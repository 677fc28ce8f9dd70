//! Builder flags. Their JSON is part of an engine's cache key, and a list of names.

use serde::{Deserialize, Serialize};

/// Arithmetic that the builder may choose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "FlagNames", into = "FlagNames")]
pub struct BuilderFlags {
    /// TF32 tensor cores for float32 layers: faster, about three decimal digits.
    pub tf32: bool,
    /// Weakly typed networks: layers may compute in float16 (TensorRT 8).
    pub fp16: bool,
    /// Weakly typed networks: layers keep the precision they are given.
    pub obey_precision_constraints: bool,
}

/// The flags that differ from TensorRT's defaults, by its names in lower case; TF32 is on by default.
#[derive(Serialize, Deserialize)]
struct FlagNames {
    set_flags: Vec<String>,
    clear_flags: Vec<String>,
}

const TF32: &str = "tf32";
const FP16: &str = "fp16";
const OBEY: &str = "obey_precision_constraints";

impl From<BuilderFlags> for FlagNames {
    fn from(flags: BuilderFlags) -> Self {
        let names = |names: &[(&str, bool)]| {
            names.iter().filter(|(_, named)| *named).map(|(name, _)| (*name).to_owned()).collect()
        };
        Self {
            set_flags: names(&[(FP16, flags.fp16), (OBEY, flags.obey_precision_constraints)]),
            clear_flags: names(&[(TF32, !flags.tf32)]),
        }
    }
}

impl TryFrom<FlagNames> for BuilderFlags {
    type Error = String;

    fn try_from(FlagNames { set_flags, clear_flags }: FlagNames) -> Result<Self, String> {
        let mut flags = Self { tf32: true, ..Self::default() };
        for name in &set_flags {
            match name.as_str() {
                FP16 => flags.fp16 = true,
                OBEY => flags.obey_precision_constraints = true,
                _ => return Err(format!("builder flag `{name}` is unknown")),
            }
        }
        for name in &clear_flags {
            match name.as_str() {
                TF32 => flags.tf32 = false,
                _ => return Err(format!("builder flag `{name}` is unknown")),
            }
        }
        Ok(flags)
    }
}

#[cfg(test)]
mod tests {
    use crate::backend::tensorrt::{BuildOptions, BuilderFlags};

    /// The JSON that version 0.1.0 hashed, so that its engines are not built again.
    #[test]
    fn options_are_written_as_before() {
        let half = BuilderFlags { tf32: true, fp16: true, obey_precision_constraints: true };
        for (flags, set, clear) in [
            (BuilderFlags::default(), "[]", r#"["tf32"]"#),
            (BuilderFlags { tf32: true, ..BuilderFlags::default() }, "[]", "[]"),
            (half, r#"["fp16","obey_precision_constraints"]"#, "[]"),
        ] {
            let options = BuildOptions { optimization_level: Some(3), flags, ..BuildOptions::default() };
            let text = serde_json::to_string(&options).unwrap();
            let expected = format!(
                r#"{{"workspace_bytes":null,"optimization_level":3,"set_flags":{set},"clear_flags":{clear},"compute_capabilities":[],"strongly_typed":false,"detailed_profiling":false,"profile":[]}}"#
            );
            assert_eq!(text, expected);
            assert_eq!(serde_json::from_str::<BuildOptions>(&text).unwrap(), options);
        }
        let unknown = r#"{"set_flags":["int8"],"clear_flags":[]}"#;
        assert!(serde_json::from_str::<BuilderFlags>(unknown).unwrap_err().to_string().contains("`int8`"));
    }
}
