"""Whether a NIC stamps packets in hardware, asked of its driver (ioctl ETHTOOL_GET_TS_INFO).

What chrony's `hwtimestamp` needs: stamps of packets sent and received from the NIC's own clock (chronyd's
ntp_io_linux.c asks for the same three flags), and a receive filter that passes NTP packets. A driver with a
filter for PTP alone would stamp half of an exchange. Source: include/uapi/linux/{ethtool,net_tstamp}.h.
"""

from __future__ import annotations

import fcntl
import socket
import struct

_SIOCETHTOOL = 0x8946
_GET_TS_INFO = 0x41
#: struct ethtool_ts_info: cmd, so_timestamping, phc_index, tx_types, 3 reserved, rx_filters, 3 reserved
_TS_INFO = struct.Struct("=IIiI12xI12x")
#: struct ifreq: a name of 16 bytes and a union that holds a pointer
_IFREQ = struct.Struct("@16sP16x")

#: SOF_TIMESTAMPING_TX_HARDWARE, _RX_HARDWARE and _RAW_HARDWARE
_HARDWARE = 1 << 0 | 1 << 2 | 1 << 6
#: HWTSTAMP_FILTER_ALL and HWTSTAMP_FILTER_NTP_ALL
_NTP_FILTERS = 1 << 1 | 1 << 15


def usable(so_timestamping: int, rx_filters: int) -> bool:
    """Whether chrony can use what a driver says of itself."""
    return so_timestamping & _HARDWARE == _HARDWARE and bool(rx_filters & _NTP_FILTERS)


def hardware(nic: str) -> bool | None:
    """Whether this machine's `nic` stamps NTP packets in hardware; None where its driver does not say."""
    import ctypes  # here: only a host that is asked for its topology needs it

    asked = ctypes.create_string_buffer(_TS_INFO.pack(_GET_TS_INFO, 0, 0, 0, 0), _TS_INFO.size)
    request = _IFREQ.pack(nic.encode(), ctypes.addressof(asked))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
    except OSError:
        return None
    _cmd, flags, _phc, _tx, filters = _TS_INFO.unpack(asked.raw)
    return usable(flags, filters)
