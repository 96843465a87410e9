package local

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
)

// A child is a process that does not outlive the one that started it.
type child struct {
	name, log string
	cancel    context.CancelFunc
	done      chan struct{} // closed when the process is gone
	err       error         // why it is gone; read after done only
}

// startChild starts the program at path with its output in the file log.
func startChild(ctx context.Context, path, log string, flags []string) (*child, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, path, flags...)
	cmd.Stdout, cmd.Stderr = out, out
	// A process of its own group, so that an interrupt at the terminal reaches
	// the test first; killed by the kernel if the test is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}

	c := &child{name: filepath.Base(path), log: log, cancel: cancel, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel means the thread when it speaks of a parent's death, so the
		// thread that starts the process has to stay.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			c.err = cmd.Wait()
		}
		_ = out.Close()
		close(c.done)
	}()
	if err := <-started; err != nil {
		cancel()
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	return c, nil
}

// stop kills the process, which has nothing to save, and returns when it is gone.
func (c *child) stop() {
	c.cancel()
	<-c.done
}

// failed returns nil while the process runs, and after that why it does not.
func (c *child) failed() error {
	select {
	case <-c.done:
		return fmt.Errorf("%s ended early: %w\n%s", c.name, c.err, tail(c.log))
	default:
		return nil
	}
}

// tail returns the last lines of the file at path, as much as helps in an error.
func tail(path string) []byte {
	const lines = 15
	content, err := os.ReadFile(path)
	if err != nil {
		return []byte(err.Error())
	}
	all := bytes.Split(bytes.TrimSpace(content), []byte("\n"))
	return bytes.Join(all[max(0, len(all)-lines):], []byte("\n"))
}
