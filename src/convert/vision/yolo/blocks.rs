//! The blocks of YOLOv8, YOLO11 and YOLO12, except attention and heads.
//!
//! The arithmetic is that of the published classes of the same names; their geometry is read from the pickled objects,
//! never from the model's YAML, which has different meanings in different versions.

use super::module::{Module, Read};
use crate::checkpoint::CheckpointError;
use crate::convert::vision::net::{Map, Net};

/// Most modules visited: a crafted file can share modules so that visiting them never ends; the largest real model has
/// 1,200.
const BLOCK_LIMIT: usize = 20_000;

type Block = fn(&mut Emitter, &Module<'_>, &Map) -> Read<Map>;

/// Modules from one map to one map, by class.
pub(super) const BLOCKS: &[(&str, Block)] = &[
    ("Conv", Emitter::conv),
    ("DWConv", Emitter::conv),
    ("Conv2d", Emitter::bare_conv),
    ("ConvTranspose2d", Emitter::bare_conv),
    ("Bottleneck", Emitter::bottleneck),
    ("C2f", Emitter::c2f),
    ("C3k2", Emitter::c2f),
    ("C3", Emitter::c3),
    ("C3k", Emitter::c3),
    ("SPPF", Emitter::sppf),
    ("Sequential", Emitter::sequential),
    ("C2PSA", Emitter::c2psa),
    ("PSABlock", Emitter::psa_block),
    ("A2C2f", Emitter::a2c2f),
    ("ABlock", Emitter::area_block),
    ("Upsample", Emitter::upsample),
    ("MaxPool2d", Emitter::max_pool),
    ("Identity", Emitter::nothing),
];

/// Emits modules.
pub(super) struct Emitter {
    pub(super) net: Net,
    pub(super) blocks: usize,
}

fn misfit(module: &Module<'_>, x: &Map) -> CheckpointError {
    module.error(format!("its weights do not fit {} channels of {} x {}", x.channels, x.height, x.width))
}

impl Emitter {
    /// Emits a module from one map to one map.
    pub(super) fn block(&mut self, module: &Module<'_>, x: &Map) -> Read<Map> {
        self.blocks += 1;
        if self.blocks > BLOCK_LIMIT {
            return Err(module.error(format!("more than {BLOCK_LIMIT} modules are no YOLO")));
        }
        let Some((_, emit)) = BLOCKS.iter().find(|(class, _)| *class == module.class) else {
            return Err(module.error("this module is not supported").with_help(
                "YOLOv8, YOLO11 and YOLO12 are; others can be exported to ONNX and built with `kind: onnx`",
            ));
        };
        emit(self, module, x)
    }

    fn sequential(&mut self, module: &Module<'_>, x: &Map) -> Read<Map> {
        self.sequence(&module.children()?, x)
    }

    /// Modules without effect in a trained model.
    fn nothing(&mut self, _: &Module<'_>, x: &Map) -> Read<Map> {
        Ok(x.clone())
    }

    /// Emits the child `part` of `module`.
    pub(super) fn part(&mut self, module: &Module<'_>, part: &str, x: &Map) -> Read<Map> {
        self.block(&module.child(part)?, x)
    }

    pub(super) fn sequence(&mut self, modules: &[Module<'_>], x: &Map) -> Read<Map> {
        modules.iter().try_fold(x.clone(), |x, module| self.block(module, &x))
    }

    /// Convolution, batch normalisation (unless the file was saved fused), activation.
    fn conv(&mut self, module: &Module<'_>, x: &Map) -> Read<Map> {
        let inner = module.child("conv")?;
        let mut conv = inner.convolution()?;
        if let Some(norm) = module.find("bn")? {
            norm.fold_into(&mut conv)?;
        }
        self.net.graph.scope(&inner.scope());
        let y = self.net.conv(x, &conv).ok_or_else(|| misfit(module, x))?;
        let Some(act) = module.find("act")? else { return Ok(y) };
        self.net.graph.scope(&act.scope());
        Ok(Map { name: self.net.activate(&y.name, act.activation()?), ..y })
    }

    fn bare_conv(&mut self, module: &Module<'_>, x: &Map) -> Read<Map> {
        let conv = module.convolution()?;
        self.net.graph.scope(&module.scope());
        let y = if module.class == "Conv2d" { self.net.conv(x, &conv) } else { self.net.conv_transpose(x, &conv) };
        y.ok_or_else(|| misfit(module, x))
    }

    /// x + y, which must have the same shape.
    pub(super) fn add(&mut self, module: &Module<'_>, x: &Map, y: &Map) -> Read<Map> {
        if (x.channels, x.height, x.width) != (y.channels, y.height, y.width) {
            return Err(module.error("its shortcut has another shape than what it is added to"));
        }
        self.net.graph.scope(&module.scope());
        Ok(Map { name: self.net.node("Add", &[&x.name, &y.name], &[]), ..y.clone() })
    }

    /// Concatenates the channels of maps of one size.
    pub(super) fn concat(&mut self, module: &Module<'_>, maps: &[Map]) -> Read<Map> {
        let first = maps.first().ok_or_else(|| module.error("nothing to join"))?;
        if maps.iter().any(|map| (map.height, map.width) != (first.height, first.width)) {
            return Err(module
                .error("it joins maps of different sizes")
                .with_help("`image_size` must be a multiple of the model's stride"));
        }
        self.net.graph.scope(&module.scope());
        let names: Vec<&str> = maps.iter().map(|map| map.name.as_str()).collect();
        let name = self.net.concat(&names, 1);
        Ok(Map { name, channels: maps.iter().map(|map| map.channels).sum(), ..first.clone() })
    }

    /// Splits a map's channels in two, `first` of them in the first part.
    pub(super) fn halves(&mut self, module: &Module<'_>, x: &Map, first: usize) -> Read<[Map; 2]> {
        let second = x.channels.checked_sub(first).filter(|second| *second > 0 && first > 0);
        let second = second.ok_or_else(|| module.error(format!("{first} of {} channels are no part", x.channels)))?;
        self.net.graph.scope(&module.scope());
        let mut names = self.net.split(&x.name, 1, &[first, second]).into_iter();
        let mut half = |channels| Map { name: names.next().unwrap_or_default(), channels, ..x.clone() };
        Ok([half(first), half(second)])
    }

    fn bottleneck(&mut self, module: &Module<'_>, x: &Map) -> Read<Map> {
        let y = self.part(module, "cv1", x)?;
        let y = self.part(module, "cv2", &y)?;
        if module.flag("add") { self.add(module, x, &y) } else { Ok(y) }
    }

    /// C2f, a cross-stage partial block: half of the channels bypass, and every inner block's output is kept.
    fn c2f(&mut self, module: &Module<'_>, x: &Map) -> Read<Map> {
        let y = self.part(module, "cv1", x)?;
        let mut parts = self.halves(module, &y, module.size("c")?)?.to_vec();
        self.grow(module, &mut parts)?;
        let joined = self.concat(module, &parts)?;
        self.part(module, "cv2", &joined)
    }

    /// Runs the inner blocks in sequence, and appends each output to `parts`.
    pub(super) fn grow(&mut self, module: &Module<'_>, parts: &mut Vec<Map>) -> Read<()> {
        for inner in module.child("m")?.children()? {
            let last = parts.last().cloned().ok_or_else(|| module.error("nothing to begin with"))?;
            parts.push(self.block(&inner, &last)?);
        }
        Ok(())
    }

    fn c3(&mut self, module: &Module<'_>, x: &Map) -> Read<Map> {
        let a = self.part(module, "cv1", x)?;
        let a = self.part(module, "m", &a)?;
        let b = self.part(module, "cv2", x)?;
        let joined = self.concat(module, &[a, b])?;
        self.part(module, "cv3", &joined)
    }

    /// SPPF, spatial pyramid pooling: the same pooling repeated.
    fn sppf(&mut self, module: &Module<'_>, x: &Map) -> Read<Map> {
        let mut parts = vec![self.part(module, "cv1", x)?];
        let pool = module.child("m")?;
        for _ in 0..module.size_or("n", 3)? {
            let last = parts[parts.len() - 1].clone();
            parts.push(self.block(&pool, &last)?);
        }
        let joined = self.concat(module, &parts)?;
        let y = self.part(module, "cv2", &joined)?;
        if module.flag("add") { self.add(module, x, &y) } else { Ok(y) }
    }

    fn max_pool(&mut self, module: &Module<'_>, x: &Map) -> Read<Map> {
        let (kernel, stride) = (module.square("kernel_size")?, module.square("stride")?);
        let padding = module.square("padding")?;
        if module.flag("ceil_mode") {
            return Err(module.error("rounding sizes up is not supported"));
        }
        self.net.graph.scope(&module.scope());
        self.net.max_pool(x, kernel, stride, padding).ok_or_else(|| misfit(module, x))
    }

    /// Nearest-neighbour upsampling by an integer factor.
    fn upsample(&mut self, module: &Module<'_>, x: &Map) -> Read<Map> {
        let mode = module.attribute("mode").and_then(|mode| mode.text());
        let scale = module.attribute("scale_factor").and_then(|scale| scale.number());
        let (Some("nearest"), Some(scale)) =
            (mode, scale.filter(|scale| scale.fract() == 0.0 && (1.0..=8.0).contains(scale)))
        else {
            return Err(module.error("only nearest neighbours by a whole factor are supported"));
        };
        self.net.graph.scope(&module.scope());
        let values = vec![1.0, 1.0, scale as f32, scale as f32];
        let scales = self.net.constant(&format!("{}.scales", module.path), &[4], values);
        let attributes = [
            ("mode", "nearest".into()),
            ("coordinate_transformation_mode", "asymmetric".into()),
            ("nearest_mode", "floor".into()),
        ];
        let name = self.net.node("Resize", &[&x.name, "", &scales], &attributes);
        let factor = scale as usize;
        Ok(Map { name, channels: x.channels, height: x.height * factor, width: x.width * factor })
    }
}
