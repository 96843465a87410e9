package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// Capture records what passes between pods on this machine, as a packet filter
// selects it, while during runs. It needs the cluster of this machine.
func (c *Cluster) Capture(ctx context.Context, filter string, during func() error) (packets []byte, err error) {
	if !c.Ours {
		return nil, errors.New("capture: the cluster's nodes are not this machine")
	}
	var out bytes.Buffer
	heard, heardWriter, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	defer heard.Close()
	// -U and -w - write packets whole and at once; the first line on standard
	// error says that it listens.
	cmd := exec.CommandContext(ctx, "tcpdump", "-i", "any", "-U", "-w", "-", "-s", "0", filter)
	cmd.Stdout, cmd.Stderr = &out, heardWriter
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	heardWriter.Close()
	line := make([]byte, 512)
	if _, err := heard.Read(line); err != nil {
		return nil, errors.Join(fmt.Errorf("capture: tcpdump did not start: %w", err), cmd.Wait())
	}
	err = during()
	// What was seen last is still on its way through tcpdump's buffer.
	flush := time.NewTimer(time.Second)
	select {
	case <-flush.C:
	case <-ctx.Done():
	}
	if stopErr := cmd.Process.Signal(syscall.SIGTERM); stopErr != nil {
		return nil, fmt.Errorf("capture: %w", stopErr)
	}
	if waitErr := cmd.Wait(); waitErr != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("capture: %w", waitErr)
	}
	return out.Bytes(), err
}
