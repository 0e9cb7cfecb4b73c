//! Numbers in text form, digit by digit, so that nothing is rounded here.

/// A finite number as PostgreSQL's output functions write it: `-12.50`, `1e-05`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Decimal<'a> {
    is_negative: bool,
    integer: &'a [u8],
    fraction: &'a [u8],
    exponent: i64,
}

impl<'a> Decimal<'a> {
    /// Returns none for `NaN`, `Infinity` and what is no number.
    pub(super) fn parse(text: &'a [u8]) -> Option<Self> {
        let (is_negative, text) = match text {
            [b'-', rest @ ..] => (true, rest),
            rest => (false, rest),
        };
        let (mantissa, exponent) = match text.iter().position(|byte| matches!(byte, b'e' | b'E')) {
            Some(at) => (&text[..at], std::str::from_utf8(&text[at + 1..]).ok()?.parse().ok()?),
            None => (text, 0),
        };
        let (integer, fraction) = match mantissa.iter().position(|&byte| byte == b'.') {
            Some(at) => (&mantissa[..at], &mantissa[at + 1..]),
            None => (mantissa, &[][..]),
        };
        let are_digits = |digits: &[u8]| digits.iter().all(u8::is_ascii_digit);
        let is_number = !mantissa.is_empty() && are_digits(integer) && are_digits(fraction);
        is_number.then_some(Self { is_negative, integer, fraction, exponent })
    }

    /// Whether a digit other than 0 lies beyond `scale` places after the point (negative: before it).
    pub(super) fn has_digits_beyond(self, scale: i32) -> bool {
        self.lowest_power().is_some_and(|power| power < -i64::from(scale))
    }

    /// The power of ten of the last digit that is not 0; none if all are.
    fn lowest_power(self) -> Option<i64> {
        let last = |digits: &[u8]| digits.iter().rposition(|&digit| digit != b'0');
        let place = |at: usize| i64::try_from(at).unwrap_or(i64::MAX);
        let power = match (last(self.fraction), last(self.integer)) {
            (Some(at), _) => -place(at) - 1,
            (None, Some(at)) => place(self.integer.len() - 1 - at),
            (None, None) => return None,
        };
        Some(power.saturating_add(self.exponent))
    }

    /// Whether both are the same number. The sign of 0 counts.
    fn equals(self, other: Decimal<'_>) -> bool {
        self.is_negative == other.is_negative
            && self.lowest_power() == other.lowest_power()
            && self.significant().eq(other.significant())
    }

    /// The digits without zeros at either end.
    fn significant(self) -> impl Iterator<Item = u8> {
        let digits = self.integer.iter().chain(self.fraction).copied();
        let length = self.integer.len() + self.fraction.len();
        let zeros_at_end = digits.clone().rev().take_while(|&digit| digit == b'0').count();
        digits.take(length - zeros_at_end).skip_while(|&digit| digit == b'0')
    }
}

/// A floating-point type of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatType {
    Single,
    Double,
}

impl FloatType {
    /// Whether the number reads back as another one. Rust writes the shortest text that reads back as the same
    /// number, as PostgreSQL does with `extra_float_digits` above 0.
    pub(super) fn rounds(self, text: &[u8]) -> bool {
        let Some(decimal) = Decimal::parse(text) else { return false };
        let Ok(text) = std::str::from_utf8(text) else { return false };
        let kept = match self {
            Self::Single => text.parse::<f32>().map(|kept| format!("{kept:e}")),
            Self::Double => text.parse::<f64>().map(|kept| format!("{kept:e}")),
        };
        // A number that is too large becomes `inf` here. The server refuses it.
        let kept = kept.unwrap_or_default();
        Decimal::parse(kept.as_bytes()).is_some_and(|kept| !kept.equals(decimal))
    }

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Single => "real",
            Self::Double => "double precision",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_beyond_the_scale_are_found() {
        for (expected, text, scale) in [
            (false, "1.50", 1),
            (true, "1.50", 0),
            (true, "-1.005", 2),
            (false, "0.000", 0),
            (false, "123400", -2),
            (true, "123410", -2),
            (true, "0.5", -2),
            (false, "0", -2),
            (true, "1.25e-05", 6),
            (false, "1.25e-05", 7),
            (false, "1.25e+30", 0),
            (false, "1.5e1", 0),
            (true, "99999999999999999999999999999999999999.9999999999", 9),
        ] {
            let decimal = Decimal::parse(text.as_bytes()).expect(text);
            assert_eq!(decimal.has_digits_beyond(scale), expected, "{text} {scale}");
        }
        for text in ["NaN", "Infinity", "-Infinity", "", "-", "1.2.3", "1e", "0x10", "$1"] {
            assert!(Decimal::parse(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn a_float_keeps_what_reads_back_as_it_was() {
        let check = |float: FloatType, text: &str, expected: bool| {
            assert_eq!(float.rounds(text.as_bytes()), expected, "{float:?} {text}");
        };
        check(FloatType::Single, "0.1", false);
        check(FloatType::Single, "16777217", true);
        check(FloatType::Single, "16777216", false);
        check(FloatType::Single, "0.30000000000000004", true);
        check(FloatType::Single, "1e+30", false);
        check(FloatType::Single, "-0", false);
        check(FloatType::Single, "100.50", false);
        check(FloatType::Single, "1e-60", true);
        // The server refuses it.
        check(FloatType::Single, "1e+300", false);
        check(FloatType::Double, "9007199254740993", true);
        check(FloatType::Double, "9223372036854775807", true);
        check(FloatType::Double, "123456789012345678901234567890.5", true);
        check(FloatType::Double, "1234567890.125", false);
        check(FloatType::Double, "NaN", false);
    }
}
