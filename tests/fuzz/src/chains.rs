//! Chains of capabilities of VFIO's info structs that lie.

use vfio_passthrough::backend::ranges_of_chain;

use crate::input::Input;

pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let first = input.u32();
    let buffer = input.0;
    let found = ranges_of_chain(buffer, first);
    assert!(found.len() <= 64, "a chain ends");
    for ranges in found {
        assert!(ranges.len() <= buffer.len() / 16, "there are no more ranges than bytes");
        assert!(ranges.iter().all(|range| range.start() <= range.end()));
    }
}
