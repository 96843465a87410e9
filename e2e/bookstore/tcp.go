package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
)

// A tcpEcho sends back what it receives, after a banner where it has one.
type tcpEcho struct {
	server
	banner string
}

func tcpEchoCommand() *cobra.Command {
	var e tcpEcho
	cmd := &cobra.Command{
		Use:   "tcp-echo",
		Short: "Send back what comes in; with --banner speak first, as databases and mail servers do",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			listener, err := e.listen(cmd.Context())
			if err != nil {
				return err
			}
			return e.serve(cmd.Context(), listener)
		},
	}
	e.flags(cmd, 9000, 5*time.Second)
	cmd.Flags().StringVar(&e.banner, "banner", "", "text to send, as a line, as soon as a connection is there")
	return cmd
}

// serve takes connections until ctx has ended and the drain time is over, and
// then closes those that are still open.
func (e *tcpEcho) serve(ctx context.Context, listener net.Listener) error {
	slog.Info("serving", "address", listener.Addr().String())
	end, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stopWaiting := context.AfterFunc(ctx, func() {
		select {
		case <-end.Done():
		case <-time.After(e.drain):
			cancel()
		}
	})
	defer stopWaiting()
	context.AfterFunc(end, func() { _ = listener.Close() })

	var connections sync.WaitGroup
	defer connections.Wait()
	for {
		conn, err := listener.Accept()
		if err != nil {
			if end.Err() != nil {
				return nil
			}
			cancel()
			return fmt.Errorf("accept: %w", err)
		}
		connections.Go(func() { e.talk(end, conn) })
	}
}

func (e *tcpEcho) talk(ctx context.Context, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer func() { _ = conn.Close() }()
	slog.Info("connected", "from", conn.RemoteAddr().String())
	if e.banner != "" {
		if _, err := fmt.Fprintln(conn, e.banner); err != nil {
			return
		}
	}
	if _, err := io.Copy(conn, conn); err != nil && ctx.Err() == nil {
		slog.Warn("connection failed", "from", conn.RemoteAddr().String(), "error", err)
	}
}

// A tcpClient dials, may say something, and listens.
type tcpClient struct {
	address string
	send    string
	expect  string
	timeout time.Duration
}

func tcpClientCommand() *cobra.Command {
	var c tcpClient
	cmd := &cobra.Command{
		Use:   "tcp-client",
		Short: "Connect, print what comes, and end with status 0 if something came, or else 1",
		Long: "Connect, send a line where one is given, and print what comes until the peer closes or the time is over.\n" +
			"With --expect it ends as soon as that text came, and with status 1 if it never does. How the connection\n" +
			"ended is told on the standard error stream.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			received, end, err := c.run(cmd.Context())
			if err != nil {
				return err
			}
			if _, err := cmd.OutOrStdout().Write(received); err != nil {
				return err
			}
			if _, err := fmt.Fprintln(cmd.ErrOrStderr(), end); err != nil {
				return err
			}
			if len(received) == 0 || !bytes.Contains(received, []byte(c.expect)) {
				return errNotAsWished
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&c.address, "address", "", "host:port to connect to")
	flags.StringVar(&c.send, "send", "", "text to send, as a line, once connected")
	flags.StringVar(&c.expect, "expect", "", "text to wait for")
	flags.DurationVar(&c.timeout, "timeout", 5*time.Second, "how long to wait in all")
	cobra.CheckErr(cmd.MarkFlagRequired("address"))
	return cmd
}

// run returns what came and how the connection ended. The error says why there
// was no connection.
func (c *tcpClient) run(ctx context.Context) (received []byte, end string, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", c.address)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	if c.send != "" {
		if _, err := fmt.Fprintln(conn, c.send); err != nil {
			return nil, "send: " + err.Error(), nil
		}
	}
	buffer := make([]byte, 4096)
	for {
		n, err := conn.Read(buffer)
		received = append(received, buffer[:n]...)
		switch {
		case c.expect != "" && bytes.Contains(received, []byte(c.expect)):
			return received, "received what was expected", nil
		case errors.Is(err, io.EOF):
			return received, "closed by the peer", nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return received, "nothing more came in time", nil
		case err != nil:
			return received, err.Error(), nil
		}
	}
}
