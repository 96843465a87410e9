package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/outrigger-mesh/outrigger/bootstrap"
)

// stopTimeout is how long Envoy may take to end after SIGTERM.
const stopTimeout = time.Second

// logFormat makes a line of Envoy's log like one of the agent's. It is a flag, and
// not in the bootstrap, because what Envoy says before it has read that counts, too.
const logFormat = `{"time":"%Y-%m-%dT%T.%e%z","level":"%l","logger":"%n","msg":"%j"}`

// runEnvoy starts Envoy when there is a certificate, passes signals on, and
// returns the status to exit with when Envoy has ended.
func (a *agent) runEnvoy(ctx context.Context) (int, error) {
	for started := false; !started; {
		select {
		case <-ctx.Done():
			return 1, nil
		case s := <-a.Signals:
			if s == unix.SIGTERM || s == unix.SIGINT {
				a.Log.Info("told to end before there was a certificate", "signal", s.String())
				return 0, nil
			}
		case <-a.identity.first:
			started = true
		}
	}
	e, err := startEnvoy(a.Envoy, a.arguments(), bootstrap.Environment(a.Settings, a.Node))
	if err != nil {
		return 1, err
	}
	a.Log.Info("envoy started", "pid", e.process.Pid)
	var gone chan struct{} // closed when nobody is served; nil before SIGTERM
	lingering, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		if gone != nil {
			<-gone
		}
	}()
	for {
		select {
		case <-e.ended:
			a.Log.Error("envoy ended by itself", "status", e.status())
			return e.status(), e.err
		case <-ctx.Done(): // another part of the agent failed
			return 1, e.stop()
		case <-gone:
			return 0, e.stop()
		case s := <-a.Signals:
			switch {
			case s == unix.SIGINT:
				return 0, e.stop()
			case s != unix.SIGTERM:
				e.signal(s)
			case gone == nil:
				gone = make(chan struct{})
				go func() { defer close(gone); a.linger(lingering) }()
			}
		}
	}
}

func (a *agent) arguments() []string {
	s := a.Settings
	return []string{
		"-c", a.files.Bootstrap,
		"--log-level", s.LogLevel,
		"--log-format", logFormat,
		"--concurrency", strconv.Itoa(s.Concurrency),
		"--drain-time-s", strconv.FormatInt(s.DrainSeconds, 10),
		"--file-flush-interval-msec", "1000", // the access log; by default ten seconds
		"--drain-strategy", "immediate", // all callers at once, not one after the other
		"--disable-hot-restart",
	}
}

// An envoy is a running Envoy.
type envoy struct {
	process *os.Process
	ended   chan struct{} // closed when it has been reaped
	wait    unix.WaitStatus
	err     error
}

// startEnvoy starts it with our standard output and error.
func startEnvoy(path string, arguments, environment []string) (*envoy, error) {
	process, err := os.StartProcess(path, append([]string{path}, arguments...), &os.ProcAttr{
		Env:   environment,
		Files: []*os.File{nil, os.Stdout, os.Stderr},
	})
	if err != nil {
		return nil, fmt.Errorf("start Envoy: %w", err)
	}
	e := &envoy{process: process, ended: make(chan struct{})}
	go e.reap()
	return e, nil
}

// reap waits for every child until Envoy is among them: the agent is the
// container's first process, so orphans of a kubectl exec become its own.
func (e *envoy) reap() {
	defer close(e.ended)
	for {
		pid, err := unix.Wait4(-1, &e.wait, 0, nil)
		if pid == e.process.Pid {
			return
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			e.err = fmt.Errorf("wait for Envoy: %w", err)
			return
		}
	}
}

// status is Envoy's as a shell would report it. Call it after the end.
func (e *envoy) status() int {
	if e.wait.Signaled() {
		return 128 + int(e.wait.Signal())
	}
	return e.wait.ExitStatus()
}

// signal passes a signal on; one that comes too late is of no interest.
func (e *envoy) signal(s os.Signal) { _ = e.process.Signal(s) }

// stop ends Envoy, by force where it does not want to, and waits for it.
func (e *envoy) stop() error {
	e.signal(unix.SIGTERM)
	timeout := time.NewTimer(stopTimeout)
	defer timeout.Stop()
	select {
	case <-e.ended:
	case <-timeout.C:
		e.signal(unix.SIGKILL)
		<-e.ended
	}
	return e.err
}
