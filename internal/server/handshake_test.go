package server

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/outrigger-mesh/outrigger/internal/signing"
	"github.com/outrigger-mesh/outrigger/internal/xds"
)

// Types of HTTP/2 frames.
const (
	frameData         = 0
	frameHeaders      = 1
	frameSettings     = 4
	framePing         = 6
	frameWindowUpdate = 8
	flagAck           = 1
	flagEndHeaders    = 4
)

// A flood is a connection without a certificate that begins calls, sends of the
// message of each as much as it is let, and finishes none.
type flood struct {
	conn   *tls.Conn
	reader *bufio.Reader

	mu      sync.Mutex // over all below, and over writing
	changed *sync.Cond
	window  map[uint32]int // of 0: the connection's
	err     error          // why the connection is over
}

func newFlood(t *testing.T, address string) *flood {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	f := &flood{conn: conn, reader: bufio.NewReader(conn), window: map[uint32]int{0: 65535}}
	f.changed = sync.NewCond(&f.mu)
	_, err = io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	must(t, err)
	must(t, f.write(frameSettings, 0, 0, nil))
	go f.listen()
	return f
}

func (f *flood) write(kind, flags byte, stream uint32, payload []byte) error {
	frame := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	frame = binary.BigEndian.AppendUint32(append(frame, flags), stream)
	_, err := f.conn.Write(append(frame, payload...))
	return err
}

// listen does what HTTP/2 asks of a client, until the connection ends.
func (f *flood) listen() {
	var head [9]byte
	for {
		_, err := io.ReadFull(f.reader, head[:])
		payload := make([]byte, binary.BigEndian.Uint32(head[:4])>>8)
		if err == nil {
			_, err = io.ReadFull(f.reader, payload)
		}
		f.mu.Lock()
		switch kind, ack := head[3], head[4]&flagAck != 0; {
		case err != nil:
			f.err = err
		case kind == frameSettings && !ack:
			f.err = f.write(frameSettings, flagAck, 0, nil)
		case kind == framePing && !ack:
			f.err = f.write(framePing, flagAck, 0, payload)
		case kind == frameWindowUpdate:
			f.window[binary.BigEndian.Uint32(head[5:])] += int(binary.BigEndian.Uint32(payload))
		}
		over := f.err != nil
		f.changed.Broadcast()
		f.mu.Unlock()
		if over {
			return
		}
	}
}

// begin opens a call and announces a message.
func (f *flood) begin(method string, stream uint32, length int) error {
	var block []byte
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":path", method}, {":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		block = append(block, 0, byte(len(h[0])))
		block = append(append(block, h[0]...), byte(len(h[1])))
		block = append(block, h[1]...)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.window[stream] = 65535
	if err := f.write(frameHeaders, flagEndHeaders, stream, block); err != nil {
		return err
	}
	return f.data(stream, binary.BigEndian.AppendUint32([]byte{0}, uint32(length)))
}

func (f *flood) data(stream uint32, payload []byte) error {
	f.window[0] -= len(payload)
	f.window[stream] -= len(payload)
	return f.write(frameData, 0, stream, payload)
}

// pour sends so much of a call's message.
func (f *flood) pour(stream uint32, length int) error {
	chunk := make([]byte, 16<<10)
	f.mu.Lock()
	defer f.mu.Unlock()
	for length > 0 {
		n := min(length, len(chunk))
		for f.err == nil && min(f.window[0], f.window[stream]) < n {
			f.changed.Wait()
		}
		if f.err == nil {
			f.err = f.data(stream, chunk[:n])
		}
		if f.err != nil {
			return f.err
		}
		length -= n
	}
	return nil
}

// Whoever reaches the port may announce long messages, and never finish them.
func TestUnfinishedMessagesCostLittle(t *testing.T) {
	for _, method := range []string{signing.Certificates_Current_FullMethodName, signing.Certificates_Sign_FullMethodName} {
		t.Run(method[strings.LastIndex(method, "/")+1:], func(t *testing.T) {
			w := newWorld(t, func(c *Config) { c.ReadTime, c.SignTime, c.StopTime = time.Hour, time.Hour, time.Nanosecond })
			floods := []*flood{newFlood(t, w.address), newFlood(t, w.address)}
			before := heap()
			var pouring sync.WaitGroup
			for _, f := range floods {
				for stream := uint32(1); stream < 2*maxStreams; stream += 2 {
					must(t, f.begin(method, stream, maxMessage))
				}
				for stream := uint32(1); stream < 2*maxStreams; stream += 2 {
					pouring.Go(func() { _ = f.pour(stream, maxMessage-1) })
				}
			}
			pouring.Wait() // all is sent, or the server has had enough
			if held := heap() - before; held > 8<<20 {
				t.Errorf("%d calls without a certificate hold %d MB", len(floods)*maxStreams, held>>20)
			}
			for _, f := range floods {
				f.mu.Lock()
				if f.err == nil {
					t.Error("a connection without a certificate stays, whatever it sends")
				}
				f.mu.Unlock()
			}
		})
	}
}

// heap returns how many bytes are held.
func heap() int64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// The longest that an agent may send must not be taken for a flood.
func TestLongestRequestFits(t *testing.T) {
	asked := make(chan int, 1)
	w := newWorld(t, func(c *Config) {
		c.Signer = signerFunc(func(token string, csr []byte) (signing.Signed, error) {
			asked <- len(token) + len(csr)
			return signing.Signed{}, errors.New("none")
		})
	})
	client := signing.NewCertificatesClient(w.dial(t, nil))
	if _, err := client.Current(t.Context(), &signing.CurrentRequest{}); err != nil {
		t.Fatal(err)
	}
	// Its characters have the longest of Huffman's codes.
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+strings.Repeat("~", maxToken))
	_, err := client.Sign(ctx, &signing.SignRequest{Csr: make([]byte, maxRequest)})
	select {
	case got := <-asked:
		if got != maxToken+maxRequest {
			t.Errorf("%d bytes arrived, want %d", got, maxToken+maxRequest)
		}
	default:
		t.Errorf("the request did not arrive: %v", err)
	}
}

// Whoever reaches the port may open connections and say nothing.
func TestConnectionsWithoutCertificateAreBounded(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.UnprovenPerAddress, c.Unproven = 3, 2 })
	town := newTown(w.ca)
	pod := town.pod("a-1", "a")
	w.publish(t, town, pod)
	settled := func(conn net.Conn) error { // whether the server speaks
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		_, err := io.ReadFull(conn, make([]byte, 9))
		return err
	}
	open := func() *tls.Conn {
		conn, err := tls.Dial("tcp", w.address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		must(t, err)
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	held := []*tls.Conn{open(), open()}
	for _, conn := range held {
		must(t, settled(conn))
	}
	if err := settled(open()); err == nil {
		t.Error("there is a place for one more")
	}
	if n := value(t, w.metrics.turnedAway); n != 1 {
		t.Errorf("%v were counted, want 1", n)
	}
	proxy := w.join(t, pod) // who has a certificate needs no place
	proxy.subscribe(xds.Cluster)
	proxy.hear()
	must(t, held[0].Close())
	eventually(t, "the place is free again", func() bool { return settled(open()) == nil })
}

func TestHandshakesOfAnAddressAreBounded(t *testing.T) {
	w := newWorld(t, nil)
	from := addressOf(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	for range maxHandshakes {
		w.door.handshakes.Take(from, maxHandshakes, 0)
	}
	if conn, err := tls.Dial("tcp", w.address, &tls.Config{InsecureSkipVerify: true}); err == nil {
		conn.Close()
		t.Error("one handshake too many is done")
	}
	w.door.handshakes.Leave(from)
	conn, err := tls.Dial("tcp", w.address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	must(t, err)
	must(t, conn.Close())
}
