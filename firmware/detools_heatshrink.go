package firmware

import (
	"bufio"
	"errors"
	"io"
)

// The limits of the heatshrink format: sizes are powers of two, given as
// exponents. detools stores them as offsets from the smallest in two nibbles.
const (
	minWindowBits    = 4
	maxWindowBits    = 15
	minLookaheadBits = 3
)

// A heatshrink decompresses a heatshrink stream, an LZSS without a header.
// Bits come most significant first, each symbol is one of
//
//	1, 8 bits                       a literal byte
//	0, window bits, lookahead bits  distance-1 and count-1 of bytes to repeat
//
// and zero bits fill the last byte. The stream does not say where it ends. What
// lies before its beginning is zero, and encoders do refer to it.
type heatshrink struct {
	in        *bufio.Reader
	window    []byte // ring of the last bytes, at most 32 KiB
	at        int    // next place in window, before masking
	indexBits uint
	countBits uint

	acc  uint32 // its low have bits are not yet used
	have uint

	from, left int // the repetition under way
}

// newHeatshrink takes the parameters from detools' byte in front of the stream:
// (window-4)<<4 | (lookahead-3).
func newHeatshrink(params byte, in *bufio.Reader) (*heatshrink, error) {
	window, lookahead := uint(params>>4)+minWindowBits, uint(params&0xf)+minLookaheadBits
	if window > maxWindowBits || lookahead >= window {
		return nil, refuse(Malformed, "heatshrink cannot have a window of %d bits with a lookahead of %d", window, lookahead)
	}
	return &heatshrink{in: in, window: make([]byte, 1<<window), indexBits: window, countBits: lookahead}, nil
}

// fill decompresses exactly len(p) bytes; io.EOF means that the stream has less.
func (h *heatshrink) fill(p []byte) error {
	mask := len(h.window) - 1
	for len(p) > 0 {
		if h.left == 0 {
			if err := h.symbol(p); err != nil {
				return err
			}
			if h.left == 0 { // a literal
				p = p[1:]
				continue
			}
		}
		n := min(h.left, len(p))
		for i := range n {
			c := h.window[(h.from+i)&mask]
			h.window[(h.at+i)&mask] = c
			p[i] = c
		}
		h.from, h.at, h.left = (h.from+n)&mask, (h.at+n)&mask, h.left-n
		p = p[n:]
	}
	return nil
}

// symbol reads one: a literal goes to p[0], a repetition to from and left.
func (h *heatshrink) symbol(p []byte) error {
	literal, err := h.bits(1)
	if err != nil {
		return err
	}
	if literal == 1 {
		c, err := h.bits(8)
		if err != nil {
			return err
		}
		p[0] = byte(c)
		h.window[h.at] = byte(c)
		h.at = (h.at + 1) & (len(h.window) - 1)
		return nil
	}
	index, err := h.bits(h.indexBits)
	if err != nil {
		return err
	}
	count, err := h.bits(h.countBits)
	if err != nil {
		return err
	}
	h.from = h.at - int(index) - 1 // may be negative: it is masked when used
	h.left = int(count) + 1
	return nil
}

// bits reads n of them, at most 15, and no byte more than that needs.
func (h *heatshrink) bits(n uint) (uint32, error) {
	for h.have < n {
		c, err := h.in.ReadByte()
		if err != nil {
			return 0, err
		}
		h.acc, h.have = h.acc<<8|uint32(c), h.have+8
	}
	h.have -= n
	return h.acc >> h.have & (1<<n - 1), nil
}

// ReadByte decompresses one byte.
func (h *heatshrink) ReadByte() (byte, error) {
	var c [1]byte
	err := h.fill(c[:])
	return c[0], err
}

var _ io.ByteReader = (*heatshrink)(nil)

// errTrailing: the stream goes on where it should end.
var errTrailing = errors.New("trailing data")

// end reports whether nothing but padding is left, errTrailing if there is more.
func (h *heatshrink) end() error {
	if h.left > 0 || h.acc&(1<<h.have-1) != 0 {
		return errTrailing
	}
	switch _, err := h.in.ReadByte(); err {
	case nil:
		return errTrailing
	case io.EOF:
		return nil
	default:
		return err
	}
}
