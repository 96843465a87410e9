package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

// A SPIRE is a running spire-server whose CA is below an authority of the test's,
// and a spire-agent that has joined it with a token. The agent knows processes of
// this machine by their user.
type SPIRE struct {
	// ServerLog and AgentLog are the paths of the logs. An agent that is started again
	// has an empty one.
	ServerLog, AgentLog string

	config        SPIREConfig
	tools         programs
	api           string // socket of the server's API
	parent        string // the agent's identity
	server, agent *child
}

// A SPIREConfig says how to start SPIRE.
type SPIREConfig struct {
	// Folder gets its data, configuration and logs.
	Folder string
	// Socket is where the agent serves the Workload API.
	Socket string
	// TrustDomain is that of all identities.
	TrustDomain string
	// Authority, PEM, signs the CA of the server; Key is its key and Root what it leads
	// to.
	Authority, Key, Root []byte
}

const spireServer = `
server {
  bind_address = "127.0.0.1"
  bind_port = "PORT"
  socket_path = "FOLDER/server.sock"
  trust_domain = "DOMAIN"
  data_dir = "FOLDER/server"
  experimental { cache_reload_interval = "1s" }
}
plugins {
  DataStore "sql" { plugin_data { database_type = "sqlite3", connection_string = "FOLDER/server/data.sqlite3" } }
  KeyManager "memory" { plugin_data {} }
  NodeAttestor "join_token" { plugin_data {} }
  UpstreamAuthority "disk" {
    plugin_data { cert_file_path = "FOLDER/authority.crt", key_file_path = "FOLDER/authority.key", bundle_file_path = "FOLDER/root.crt" }
  }
}
`

const spireAgent = `
agent {
  server_address = "127.0.0.1"
  server_port = "PORT"
  socket_path = "SOCKET"
  trust_domain = "DOMAIN"
  trust_bundle_path = "FOLDER/root.crt"
  data_dir = "FOLDER/agent"
  join_token_file = "FOLDER/token"
  experimental { sync_interval = "1s" }
}
plugins {
  KeyManager "disk" { plugin_data { directory = "FOLDER/agent" } }
  NodeAttestor "join_token" { plugin_data {} }
  WorkloadAttestor "unix" { plugin_data {} }
}
`

// StartSPIRE starts both and returns when the agent serves. It builds them first if
// the cache does not hold them. The processes end at the latest with ctx or with
// the calling process.
func StartSPIRE(ctx context.Context, config SPIREConfig) (*SPIRE, error) {
	c, err := Config{}.complete()
	if err != nil {
		return nil, err
	}
	tools, err := c.build(ctx, "spire-server", "spire-agent")
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(ctx, 1)
	if err != nil {
		return nil, err
	}
	s := &SPIRE{
		config: config, tools: tools, api: filepath.Join(config.Folder, "server.sock"),
		ServerLog: filepath.Join(config.Folder, "server.log"), AgentLog: filepath.Join(config.Folder, "agent.log"),
	}
	if err := s.configure(ports[0]); err != nil {
		return nil, fmt.Errorf("configure SPIRE: %w", err)
	}
	if err := s.startServer(ctx); err != nil {
		return nil, err
	}
	if err := s.join(ctx); err != nil {
		s.server.stop()
		return nil, err
	}
	if err := s.StartAgent(ctx); err != nil {
		s.server.stop()
		return nil, err
	}
	return s, nil
}

// MoveBelow has the server make its CA below another authority. Certificates that are
// there are renewed when they would have been.
func (s *SPIRE) MoveBelow(ctx context.Context, authority, key, root []byte) error {
	s.config.Authority, s.config.Key, s.config.Root = authority, key, root
	if err := s.write(s.authority()); err != nil {
		return err
	}
	var made struct {
		Prepared struct {
			ID string `json:"authority_id"`
		} `json:"prepared_authority"`
	}
	if err := s.call(ctx, &made, "spire-server", "localauthority", "x509", "prepare", "-socketPath", s.api, "-output", "json"); err != nil {
		return err
	}
	return s.call(ctx, nil, "spire-server", "localauthority", "x509", "activate", "-socketPath", s.api, "-authorityID", made.Prepared.ID)
}

// authority are the files of what the server's CA is below.
func (s *SPIRE) authority() map[string][]byte {
	return map[string][]byte{"authority.crt": s.config.Authority, "authority.key": s.config.Key, "root.crt": s.config.Root}
}

func (s *SPIRE) configure(port int) error {
	if err := os.MkdirAll(s.config.Folder, 0o700); err != nil {
		return err
	}
	fill := strings.NewReplacer("PORT", strconv.Itoa(port), "FOLDER", s.config.Folder, "SOCKET", s.config.Socket, "DOMAIN", s.config.TrustDomain)
	return errors.Join(s.write(s.authority()), s.write(map[string][]byte{
		"server.conf": []byte(fill.Replace(spireServer)), "agent.conf": []byte(fill.Replace(spireAgent)),
	}))
}

func (s *SPIRE) write(files map[string][]byte) error {
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(s.config.Folder, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (s *SPIRE) startServer(ctx context.Context) error {
	var err error
	s.server, err = startChild(ctx, s.tools["spire-server"], s.ServerLog, []string{"run", "-config", filepath.Join(s.config.Folder, "server.conf")})
	if err != nil {
		return err
	}
	return s.healthy(ctx, s.server, s.api)
}

// StartAgent starts the agent again after StopAgent, with its data, and returns when
// it serves.
func (s *SPIRE) StartAgent(ctx context.Context) error {
	agent, err := startChild(ctx, s.tools["spire-agent"], s.AgentLog, []string{"run", "-config", filepath.Join(s.config.Folder, "agent.conf")})
	if err != nil {
		return err
	}
	s.agent = agent
	return s.healthy(ctx, agent, s.config.Socket)
}

// healthy waits until a program says of itself that it is, and stops it otherwise.
func (s *SPIRE) healthy(ctx context.Context, program *child, socket string) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		if err := program.failed(); err != nil {
			return false, err
		}
		last = s.call(ctx, nil, program.name, "healthcheck", "-socketPath", socket)
		return last == nil, nil
	})
	if err != nil {
		program.stop()
		return fmt.Errorf("wait for %s: %w", program.name, errors.Join(err, last))
	}
	return nil
}

// join has the server make a token for the agent.
func (s *SPIRE) join(ctx context.Context) error {
	var made struct {
		Value string `json:"value"`
	}
	if err := s.call(ctx, &made, "spire-server", "token", "generate", "-socketPath", s.api, "-output", "json"); err != nil {
		return err
	}
	s.parent = "spiffe://" + s.config.TrustDomain + "/spire/agent/join_token/" + made.Value
	return os.WriteFile(filepath.Join(s.config.Folder, "token"), []byte(made.Value), 0o600)
}

// Register gives processes of the user the identity, with certificates that last
// for lifetime, which counts in whole seconds.
func (s *SPIRE) Register(ctx context.Context, id string, user int, lifetime time.Duration) error {
	return s.call(ctx, nil, "spire-server", "entry", "create", "-socketPath", s.api, "-output", "json",
		"-parentID", s.parent, "-spiffeID", id, "-selector", "unix:uid:"+strconv.Itoa(user),
		"-x509SVIDTTL", strconv.Itoa(int(lifetime/time.Second)))
}

// call runs a command of one of the programs, and decodes its answer where into is
// not nil.
func (s *SPIRE) call(ctx context.Context, into any, program string, args ...string) error {
	out, err := exec.CommandContext(ctx, s.tools[program], args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, out)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(out, into)
}

// StopAgent kills the agent. Its data stays.
func (s *SPIRE) StopAgent() { s.agent.stop() }

// Stop kills both.
func (s *SPIRE) Stop() {
	s.agent.stop()
	s.server.stop()
}
