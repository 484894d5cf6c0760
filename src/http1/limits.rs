//! What a request head may take, by nginx's buffers.

/// What a head may take, and how odd its names may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `client_header_buffer_size`: what fits in the first buffer is not too long.
    pub first: usize,
    /// `large_client_header_buffers`: how many there may be besides the first.
    pub number: usize,
    /// Bytes of each of them. A line lies whole in one buffer.
    pub size: usize,
    /// `max_headers`; lines left out do not count.
    pub count_max: usize,
    /// `ignore_invalid_headers`: leave lines with an odd name out instead of passing them on.
    pub ignore_invalid_headers: bool,
    /// `underscores_in_headers`: a name with `_` is not odd.
    pub underscores_in_headers: bool,
}

impl Default for Limits {
    /// nginx's defaults.
    fn default() -> Self {
        Limits {
            first: 1024,
            number: 4,
            size: 8 * 1024,
            count_max: 1000,
            ignore_invalid_headers: true,
            underscores_in_headers: false,
        }
    }
}

/// Which limits hold where in the head.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// Of the default server.
    pub limits: Limits,
    /// Of the server that the host names, when they are others: they hold behind the line that names
    /// it. When they become known, the head is cleared and read once more.
    pub behind_host: Option<Limits>,
}

impl From<Limits> for Rules {
    fn from(limits: Limits) -> Self {
        Rules { limits, behind_host: None }
    }
}

impl Rules {
    /// Those that hold behind the host, or ahead of it.
    pub(super) fn at(&self, is_behind_host: bool) -> &Limits {
        match &self.behind_host {
            Some(limits) if is_behind_host => limits,
            _ => &self.limits,
        }
    }
}

/// nginx's buffers: a line that the current one cannot hold moves, as far as it has come, to the start
/// of the next. Here nothing moves: the lines lie where they were received, and of the current buffer
/// only its end is known.
///
/// Every request begins with a first buffer of its own, also behind another one or a PROXY header. In
/// nginx those have left less of it, and a pipelined request uses the large buffers that the one before
/// it has taken. That never lets more pass, but where another server allowed more of them or larger ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Buffers {
    /// Where the one that nginx would have in use ends, as a place among the received bytes.
    end: usize,
    /// How many large ones nginx would have taken.
    taken: usize,
}

impl Buffers {
    /// The first one alone, behind so many bytes of empty lines. They take room as well; when they have
    /// filled it, it begins anew.
    pub fn first(limits: &Limits, empty: usize) -> Self {
        let end = match empty {
            0 => limits.first,
            _ => empty.saturating_add(1).next_multiple_of(limits.first.max(1)),
        };
        Buffers { end, taken: 0 }
    }

    /// Where the line that starts at `line_start` has to end at the latest.
    pub fn bound(&self, limits: &Limits, line_start: usize) -> usize {
        if self.taken < limits.number {
            self.end.max(line_start.saturating_add(limits.size))
        } else {
            self.end
        }
    }

    /// Whether that line keeps the limits if the next one starts at `next`.
    pub fn fit(&self, limits: &Limits, line_start: usize, next: usize) -> bool {
        // The first look is enough for almost all.
        next <= self.end || next <= self.bound(limits, line_start)
    }

    /// Has that line, which fits.
    pub fn hold(&mut self, limits: &Limits, line_start: usize, next: usize) {
        if next > self.end {
            self.taken = self.taken.saturating_add(1);
            self.end = line_start.saturating_add(limits.size);
        }
    }
}
