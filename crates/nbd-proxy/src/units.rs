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

/// A time in the largest unit that it fills: `59 s`, `12 min`, `3 h`, `9 d`.
#[cfg(feature = "serve")]
pub(crate) fn duration(time: std::time::Duration) -> String {
    match time.as_secs() {
        seconds @ ..60 => format!("{seconds} s"),
        seconds @ ..3600 => format!("{} min", seconds / 60),
        seconds @ ..86_400 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    #[cfg(feature = "serve")]
    fn a_time_is_told_in_its_largest_unit() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3599, "59 min"),
            (86_399, "23 h"),
            (864_000, "10 d"),
        ] {
            let time = std::time::Duration::from_secs(seconds);
            assert_eq!(super::duration(time), text);
        }
    }

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
