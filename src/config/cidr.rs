//! Networks: `address[/bits]`, as `set_real_ip_from`, `geo` and the like take them.

use std::net::IpAddr;

/// A network of one of the address families (RFC 4632 section 3.1, RFC 4291 section 2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cidr {
    /// The first address and how many leading bits matter.
    V4 {
        first: u32,
        bits: u8,
    },
    V6 {
        first: u128,
        bits: u8,
    },
}

/// A network as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub network: Cidr,
    /// Bits beyond the network's were set; they are off in `network`, and nginx warns.
    pub has_low_bits: bool,
}

impl Cidr {
    /// Reads `1.2.3.4`, `10.0.0.0/8`, `2001:db8::/32`.
    pub fn parse(text: &str) -> Option<Written> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(super::value::number(bits)?)),
            None => (text, None),
        };
        let address = super::address::ip(address)?;
        let full = Cidr::of(address);
        let Some(bits) = bits else { return Some(Written { network: full, has_low_bits: false }) };
        let bits = u8::try_from(bits).ok()?;
        let network = match full {
            Cidr::V4 { first, .. } if bits <= 32 => Cidr::V4 { first: first & mask4(bits), bits },
            Cidr::V6 { first, .. } if bits <= 128 => Cidr::V6 { first: first & mask6(bits), bits },
            _ => return None,
        };
        let has_low_bits = match (full, network) {
            (Cidr::V4 { first: written, .. }, Cidr::V4 { first, .. }) => written != first,
            (Cidr::V6 { first: written, .. }, Cidr::V6 { first, .. }) => written != first,
            _ => false,
        };
        Some(Written { network, has_low_bits })
    }

    /// The network of one address.
    pub fn of(address: IpAddr) -> Cidr {
        match address {
            IpAddr::V4(address) => Cidr::V4 { first: address.to_bits(), bits: 32 },
            IpAddr::V6(address) => Cidr::V6 { first: address.to_bits(), bits: 128 },
        }
    }

    /// Whether an address is in it. An IPv4 address in IPv6's clothes (`::ffff:1.2.3.4`) is IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (*self, address.to_canonical()) {
            (Cidr::V4 { first, bits }, IpAddr::V4(address)) => {
                address.to_bits() & mask4(bits) == first
            }
            (Cidr::V6 { first, bits }, IpAddr::V6(address)) => {
                address.to_bits() & mask6(bits) == first
            }
            _ => false,
        }
    }
}

const fn mask4(bits: u8) -> u32 {
    match u32::MAX.checked_shl(32_u32.saturating_sub(bits as u32)) {
        Some(mask) => mask,
        None => 0,
    }
}

const fn mask6(bits: u8) -> u128 {
    match u128::MAX.checked_shl(128_u32.saturating_sub(bits as u32)) {
        Some(mask) => mask,
        None => 0,
    }
}

/// Any text: a network holds its first address, and is read again as it was.
#[allow(clippy::expect_used, reason = "the property that is tested")]
pub fn fuzz_cidr(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Some(Written { network, .. }) = Cidr::parse(&text) else { return };
    let (address, bits) = match network {
        Cidr::V4 { first, bits } => (IpAddr::from(first.to_be_bytes()), bits),
        Cidr::V6 { first, bits } => (IpAddr::from(first.to_be_bytes()), bits),
    };
    let is_mapped = address.to_canonical() != address;
    assert_eq!(network.contains(address), !is_mapped);
    let again = Cidr::parse(&format!("{address}/{bits}")).expect("written as it was read");
    assert_eq!(again, Written { network, has_low_bits: false });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn networks() {
        for (text, address, is_in) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "::1", false),
            ("1.2.3.4", "1.2.3.4", true),
            ("1.2.3.4", "::ffff:1.2.3.4", true),
            ("1.2.3.4", "1.2.3.5", false),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::/0", "::1", true),
            ("::/0", "1.2.3.4", false),
            ("::1", "::1", true),
        ] {
            let network = Cidr::parse(text).unwrap().network;
            assert_eq!(network.contains(address.parse().unwrap()), is_in, "{text} {address}");
        }
    }

    #[test]
    fn what_is_written() {
        for text in
            ["", "/", "1.2.3", "1.2.3.4/", "1.2.3.4/33", "::/129", "1.2.3.4/-1", "a", "1.2.3.4/8 "]
        {
            assert_eq!(Cidr::parse(text), None, "{text}");
        }
        assert!(Cidr::parse("1.2.3.4/8").unwrap().has_low_bits);
        assert!(Cidr::parse("::1/64").unwrap().has_low_bits);
        assert!(!Cidr::parse("1.2.3.4/32").unwrap().has_low_bits);
        assert_eq!(
            Cidr::parse("1.2.3.4/8").unwrap().network,
            Cidr::parse("1.0.0.0/8").unwrap().network
        );
    }

    proptest! {
        #[test]
        fn any_text(text in "[0-9]{1,3}(\\.[0-9]{1,3}){3}(/[0-9]{1,3})?|[0-9a-f:]{2,12}(/[0-9]{1,3})?") {
            fuzz_cidr(text.as_bytes());
        }
    }
}
