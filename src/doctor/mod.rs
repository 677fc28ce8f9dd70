//! d
/// x
pub fn l4t_release() -> Option<String> { None }
pub fn performance_notes() -> Vec<String> { vec![] }
