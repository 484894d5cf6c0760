//! How one direction of a tunnel is moved: decisions out of what was moved before. Pure.
//!
//! Splice wins for bulk only: a small message is cheaper received into a warm buffer and sent at
//! once. So each direction begins with copying, goes over to splice after several large receives in
//! a row, and back after several wake-ups in a row that carried little.

/// Bytes received at once in copy mode.
pub const SCRATCH: usize = 64 << 10;
/// A receive of at least this much speaks for splice.
const LARGE: usize = SCRATCH / 2;
/// Large receives in a row before a direction is spliced.
const LARGE_IN_A_ROW: u8 = 3;
/// A wake-up that moved less than this speaks for copying.
const SMALL: usize = 8 << 10;
/// Small wake-ups in a row before a direction is copied again.
const SMALL_IN_A_ROW: u8 = 8;
/// Payload bytes of a frame that are worth a splice.
pub const SPLICE_MIN: u64 = 16 << 10;
/// Bytes that one direction moves before others have their turn.
pub const BUDGET: usize = 128 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Socket to the shard's scratch buffer to socket.
    #[default]
    Copy,
    /// Socket to pipe to socket.
    Splice,
}

/// The mode of a direction, and what speaks for the other one.
#[derive(Debug, Default)]
pub struct Pace {
    mode: Mode,
    /// Steps in a row that speak for the other mode.
    streak: u8,
    /// One of the sockets cannot be spliced.
    copy_only: bool,
}

impl Pace {
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// After a receive in copy mode. `spliceable`: what comes next can be spliced, as far as is
    /// known: the rest of a large frame, or bytes that nobody follows. True: the mode has changed.
    pub fn copied(&mut self, bytes: usize, spliceable: bool) -> bool {
        if self.mode == Mode::Splice || bytes < LARGE {
            if self.mode == Mode::Copy {
                self.streak = 0;
            }
            return false;
        }
        self.streak = self.streak.saturating_add(1);
        spliceable && self.streak >= LARGE_IN_A_ROW && !self.copy_only && self.switch(Mode::Splice)
    }

    /// In splice mode, after a wake-up that moved so many bytes in all, or at a frame too small to
    /// be spliced. True: the mode has changed.
    pub fn spliced(&mut self, bytes: usize) -> bool {
        if self.mode == Mode::Copy {
            return false;
        }
        if bytes >= SMALL {
            self.streak = 0;
            return false;
        }
        self.streak = self.streak.saturating_add(1);
        self.streak >= SMALL_IN_A_ROW && self.switch(Mode::Copy)
    }

    /// There is no pipe to be had: copies until it has carried as much again.
    pub fn without_pipe(&mut self) -> bool {
        self.mode == Mode::Splice && self.switch(Mode::Copy)
    }

    /// The sockets cannot be spliced: copies for good.
    pub fn only_copies(&mut self) -> bool {
        self.copy_only = true;
        self.mode == Mode::Splice && self.switch(Mode::Copy)
    }

    fn switch(&mut self, mode: Mode) -> bool {
        self.mode = mode;
        self.streak = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_is_spliced_and_small_traffic_is_copied_again() {
        let mut pace = Pace::default();
        assert!(!pace.copied(SCRATCH, true));
        assert!(!pace.copied(128, true), "not in a row");
        assert!(!pace.copied(SCRATCH, true) && !pace.copied(LARGE, true));
        assert!(pace.copied(SCRATCH, true));
        assert_eq!(pace.mode(), Mode::Splice);
        for _ in 0..SMALL_IN_A_ROW - 1 {
            assert!(!pace.spliced(100));
        }
        assert!(!pace.spliced(SMALL), "not in a row");
        for _ in 0..SMALL_IN_A_ROW - 1 {
            assert!(!pace.spliced(0));
        }
        assert!(pace.spliced(100));
        assert_eq!(pace.mode(), Mode::Copy);
    }

    #[test]
    fn many_small_frames_stay_copied() {
        let mut pace = Pace::default();
        for _ in 0..1000 {
            assert!(!pace.copied(SCRATCH, false));
        }
        assert!(pace.copied(SCRATCH, true), "until a large one comes");
    }

    #[test]
    fn sockets_that_cannot_be_spliced() {
        let mut pace = Pace::default();
        for _ in 0..3 {
            pace.copied(SCRATCH, true);
        }
        assert!(pace.only_copies());
        for _ in 0..10 {
            assert!(!pace.copied(SCRATCH, true));
        }
    }
}
