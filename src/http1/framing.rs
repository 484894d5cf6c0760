//! Where a body ends (RFC 9112 section 6).

use super::decimal_digit;

/// What delimits the body of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyLength {
    /// There is no body.
    #[default]
    None,
    /// `Content-Length`, in bytes. `Length(0)` is not the same as `None`: the sender said so.
    Length(u64),
    /// `Transfer-Encoding: chunked`
    Chunked,
    /// All bytes until the sender closes; responses only.
    UntilClose,
}

/// The largest body nginx can count: an `off_t`.
pub const LENGTH_MAX: u64 = i64::MAX.unsigned_abs();

/// The value of a `Content-Length` header in bytes: digits only, at most [`LENGTH_MAX`].
///
/// A list (`5, 5`), which RFC 9110 section 8.6 would allow to be taken as one, is not a number.
pub fn parse_content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |length, &byte| {
        let digit = decimal_digit(byte)?;
        let length = length.checked_mul(10)?.checked_add(u64::from(digit))?;
        (length <= LENGTH_MAX).then_some(length)
    })
}

/// The only transfer coding understood; alone, in any case.
pub fn is_chunked(transfer_encoding: &[u8]) -> bool {
    transfer_encoding.eq_ignore_ascii_case(b"chunked")
}

/// A length is refused, or is the number that its digits mean.
pub fn fuzz_content_length(data: &[u8]) {
    if let Some(length) = parse_content_length(data) {
        assert!(data.iter().all(u8::is_ascii_digit));
        let significant = data.iter().skip_while(|&&byte| byte == b'0');
        let digits: String = significant.map(|&byte| char::from(byte)).collect();
        assert_eq!(digits, if length == 0 { String::new() } else { length.to_string() });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn content_length() {
        assert_eq!(parse_content_length(b"0"), Some(0));
        assert_eq!(parse_content_length(b"0042"), Some(42));
        assert_eq!(parse_content_length(b"9223372036854775807"), Some(LENGTH_MAX));
        for bad in [
            "",
            "+1",
            "-1",
            " 1",
            "1 ",
            "1, 1",
            "0x10",
            "9223372036854775808",
            "99999999999999999999",
        ] {
            assert_eq!(parse_content_length(bad.as_bytes()), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(data: Vec<u8>) {
            fuzz_content_length(&data);
        }

        #[test]
        fn any_digits(data in "[0-9]{1,22}") {
            fuzz_content_length(data.as_bytes());
            let wanted = data.parse::<u64>().ok().filter(|&length| length <= LENGTH_MAX);
            prop_assert_eq!(parse_content_length(data.as_bytes()), wanted);
        }
    }
}
