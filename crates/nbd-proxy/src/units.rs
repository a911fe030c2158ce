//! Numbers for people.

/// A number of bytes in binary units: `512 B`, `58.0 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut unit = UNITS[0];
    let mut shift = 10;
    for (larger, name) in (20..).step_by(10).zip(&UNITS[1..]) {
        if count >> larger == 0 {
            break;
        }
        (unit, shift) = (*name, larger);
    }
    // Tenths, rounded down, without floating point: 1023.99 must not become 1024.0.
    let tenths = (u128::from(count) * 10) >> shift;
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn each_unit_begins_where_the_one_before_ends() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (58 << 20, "58.0 MiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
