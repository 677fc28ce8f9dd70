//! Children of this program: what may crash, never end or take all memory works in a process of its own, which is the running
//! program started again, with one argument that says what it is to do.
//!
//! The library cannot know what its user's program would do when it is started again. So it starts none before the program has
//! said, with [`enable_child_processes`], that it answers. Until then chat templates, grammars and the CPU reference
//! ([`crate::backend::cpu::Reference`]) work in this process, without limits of time and memory; what can only be had in a
//! child ([`crate::backend::isolated::Isolated::of_this_program`], a build in a child) is an error that names the call.
//!
//! A child is always the program that runs, also after an upgrade has replaced its file.

#[cfg(feature = "fetch")]
use std::io::{BufReader, stdin, stdout};
use std::{env, process};

use crate::backend::{isolated, onnxruntime};
use crate::confined;
use crate::generation::compiler;
use crate::log;
use crate::text::child;
#[cfg(feature = "fetch")]
use crate::worker;

/// What a child does until its input ends.
type ChildMain = fn() -> Result<(), String>;

/// What children are started to do, by the argument that they are started with.
fn child_main(argument: &str) -> Option<ChildMain> {
    let main: ChildMain = match argument {
        isolated::SUBCOMMAND => isolated::child_main,
        child::SUBCOMMAND => render_templates,
        compiler::SUBCOMMAND => compile_grammars,
        #[cfg(feature = "fetch")]
        worker::SUBCOMMAND => build_engine,
        _ => return None,
    };
    Some(main)
}

fn render_templates() -> Result<(), String> {
    confined::serve(child::answerer())
}

fn compile_grammars() -> Result<(), String> {
    confined::serve(compiler::answerer())
}

#[cfg(feature = "fetch")]
fn build_engine() -> Result<(), String> {
    worker::child_main(BufReader::new(stdin()), stdout())
}

/// What this process was started to do as a child, if it was. Children have no other argument.
fn started_for() -> Option<ChildMain> {
    let mut arguments = env::args_os().skip(1);
    let (argument, None) = (arguments.next()?, arguments.next()) else { return None };
    child_main(argument.to_str()?)
}

/// Whether this process is a child, whose work [`enable_child_processes`] will do: for a program that has to prepare it, e.g. its
/// log.
pub fn is_child() -> bool {
    started_for().is_some()
}

/// Lets this library start the running program again, as a child that works under limits. To be called first thing in `main`,
/// before arguments are read and threads are started:
///
/// ```no_run
/// // The first line of `main`.
/// watus_build::enable_child_processes();
/// ```
///
/// It must be called under no condition, since a child is started with other arguments than the program was. In a child it does
/// the child's work and ends the process. Anywhere else it returns, and from then on chat templates and
/// grammars, which come with models and from clients, can neither take all memory nor run for ever.
pub fn enable_child_processes() {
    if let Some(main) = started_for() {
        confined::take_name();
        onnxruntime::disable_telemetry();
        let code = match main() {
            Ok(()) => 0,
            Err(message) => {
                log::line(&log::printable_text(&format!("error: {message}")));
                1
            }
        };
        process::exit(code);
    }
    // Where a system does not tell, all work stays in this process.
    if let Ok(program) = env::current_exe() {
        confined::use_program(program);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_arguments_make_a_child() {
        let always = [isolated::SUBCOMMAND, child::SUBCOMMAND, compiler::SUBCOMMAND];
        assert!(always.iter().all(|argument| child_main(argument).is_some()));
        assert_eq!(child_main("__build-engine").is_some(), cfg!(feature = "fetch"));
        assert!(["", "--help", "build", "__sessions"].iter().all(|argument| child_main(argument).is_none()));
        assert!(!is_child());
    }
}
