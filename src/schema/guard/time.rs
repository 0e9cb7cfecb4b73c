//! Times and intervals in text form, with the session settings that both sides have: `datestyle = ISO`,
//! `intervalstyle = postgres`.

/// The fields of an interval, the largest first. `interval year to month` has `Month` as its smallest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum IntervalField {
    Year,
    Month,
    Day,
    Hour,
    Minute,
    Second,
}

impl IntervalField {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Year => "years",
            Self::Month => "months",
            Self::Day => "days",
            Self::Hour => "hours",
            Self::Minute => "minutes",
            Self::Second => "seconds",
        }
    }
}

/// Whether the fraction of a second has a digit other than 0 beyond `digits`.
pub(super) fn has_fraction_beyond(time: &[u8], digits: i32) -> bool {
    let Some(point) = time.iter().position(|&byte| byte == b'.') else { return false };
    let fraction = time.iter().skip(point + 1).take_while(|byte| byte.is_ascii_digit());
    fraction.skip(usize::try_from(digits).unwrap_or_default()).any(|&digit| digit != b'0')
}

/// Whether an interval has fields below `smallest`, or a longer fraction of a second. Its text is like
/// `1 year 2 mons -3 days 04:05:06.789`; fields that are 0 may be left out.
pub(super) fn interval_exceeds(interval: &[u8], smallest: IntervalField, digits: i32) -> bool {
    let Ok(interval) = std::str::from_utf8(interval) else { return false };
    let mut number = "";
    for word in interval.split_ascii_whitespace() {
        let field = match word.trim_end_matches('s') {
            "mon" => IntervalField::Month,
            "day" => IntervalField::Day,
            time if time.contains(':') => match smallest_of_time(time) {
                Some(field) => {
                    if field > smallest {
                        return true;
                    }
                    continue;
                }
                None => continue,
            },
            _ => {
                number = word;
                continue;
            }
        };
        if field > smallest && is_not_zero(number) {
            return true;
        }
    }
    has_fraction_beyond(interval.as_bytes(), digits)
}

/// Returns the smallest field of `-04:05:06.789` that is not 0.
fn smallest_of_time(time: &str) -> Option<IntervalField> {
    let fields = [IntervalField::Hour, IntervalField::Minute, IntervalField::Second];
    time.split(':').zip(fields).filter(|(number, _)| is_not_zero(number)).map(|(_, field)| field).last()
}

fn is_not_zero(number: &str) -> bool {
    number.bytes().any(|byte| matches!(byte, b'1'..=b'9'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_beyond_the_declared_digits_are_found() {
        for (expected, time, digits) in [
            (true, "2024-02-29 12:34:56.789012+05:45", 5),
            (false, "2024-02-29 12:34:56.78901+05:45", 5),
            (true, "0044-03-15 12:00:00.5+00 BC", 0),
            (false, "12:34:56", 0),
            (false, "infinity", 0),
            (false, "-infinity", 0),
        ] {
            assert_eq!(has_fraction_beyond(time.as_bytes(), digits), expected, "{time} {digits}");
        }
    }

    #[test]
    fn fields_of_an_interval_that_would_be_dropped_are_found() {
        use IntervalField::{Day, Hour, Minute, Month, Second, Year};
        for (expected, interval, smallest) in [
            (false, "3 years", Year),
            (true, "3 years 1 mon", Year),
            (false, "3 years -1 mons", Month),
            (true, "1 mon -1 days", Month),
            (true, "00:00:01", Day),
            (false, "1 mon -3 days", Day),
            (false, "1 year -04:00:00", Hour),
            (true, "-04:05:00", Hour),
            (false, "04:05:00", Minute),
            (true, "00:00:00.5", Minute),
            (false, "1 year 2 mons -3 days +04:05:06.78", Second),
            (true, "00:00:00.001", Second),
            (false, "00:00:00", Year),
            (false, "infinity", Year),
            (false, "-infinity", Second),
        ] {
            assert_eq!(
                interval_exceeds(interval.as_bytes(), smallest, 2),
                expected,
                "{interval} {smallest:?}"
            );
        }
    }
}
