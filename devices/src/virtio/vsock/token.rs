//! Whom an event is for, as the number that the worker's loop keeps with a descriptor.

use super::muxer::{Id, MAX_CONNECTIONS};

/// Whom an event of the loop is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// A connection's socket, and which one of those that have had its place: an event may come to
    /// light when the next one has it.
    Stream(Id, u32),
    /// The socket of a peer that has not said its line.
    Handshake(u32),
    /// The listening socket.
    Listener,
    /// The timer.
    Timer,
    /// A queue's doorbell.
    Bell(u32),
}

/// Bits of a connection's place in a token, and of what follows it.
const ID_BITS: u32 = MAX_CONNECTIONS.ilog2();
const TURN_BITS: u32 = 24 - ID_BITS;

impl Token {
    /// The socket of the connection `id`, the `count`th that husk has begun.
    pub fn stream(id: Id, count: u64) -> Token {
        Token::Stream(id, count as u32 & ((1 << TURN_BITS) - 1))
    }

    /// As the loop keeps it: the kind in the top byte, the number below.
    pub fn data(self) -> u32 {
        match self {
            Token::Stream(id, turn) => turn << ID_BITS | id,
            Token::Handshake(n) => 1 << 24 | n,
            Token::Listener => 2 << 24,
            Token::Timer => 3 << 24,
            Token::Bell(n) => 4 << 24 | n,
        }
    }

    /// What [`Token::data`] made that number of.
    pub fn of(data: u32) -> Option<Token> {
        let n = data & 0xff_ffff;
        match data >> 24 {
            0 => Some(Token::Stream(n & (MAX_CONNECTIONS as u32 - 1), n >> ID_BITS)),
            1 => Some(Token::Handshake(n)),
            2 => Some(Token::Listener),
            3 => Some(Token::Timer),
            4 => Some(Token::Bell(n)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_out_of_the_loops_number() {
        for token in [
            Token::Stream(0, 0),
            Token::stream(1023, u64::MAX),
            Token::Handshake(63),
            Token::Listener,
            Token::Timer,
            Token::Bell(2),
        ] {
            assert_eq!(Token::of(token.data()), Some(token));
        }
        assert_eq!(Token::of(u32::MAX), None);
    }
}
