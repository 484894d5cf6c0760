//! Counts of bytes that have gone over a connection, or into a file.

/// Adds to a count.
#[inline]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "what is counted is there one by one: 2^64 never come"
)]
pub fn add(total: &mut u64, more: u64) {
    *total += more;
}
