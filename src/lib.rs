//! Turns checkpoints into proven TensorRT engines on the machine they run on.
pub mod artifact;
pub mod backend;
pub mod bench;
pub mod cli;
pub mod doctor;
pub mod fetch;
pub mod manifest;
pub mod memory;
pub mod onnx;
pub mod pipeline;
pub mod progress;
pub mod recipe;
pub mod tensor;
pub mod verify;
pub mod vision;
pub mod worker;
