package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

// StartVaults starts three servers that share their data by Raft, so that two go on
// when one is stopped, with one authority for their TLS. The first is the active one
// to begin with. A standby forwards calls to the active one; with redirect it sends
// the caller there instead. For the rest see StartVault.
func StartVaults(ctx context.Context, dir, host string, redirect bool) ([]*Vault, error) {
	ca, err := newAuthority("vault")
	if err != nil {
		return nil, err
	}
	var members []*Vault
	for n := range 3 {
		v, err := startMember(ctx, filepath.Join(dir, strconv.Itoa(n)), host, ca, redirect, members)
		if err != nil {
			for _, v := range members {
				v.Stop()
			}
			return nil, err
		}
		members = append(members, v)
	}
	if err := members[0].wantVoters(ctx, len(members)); err != nil {
		for _, v := range members {
			v.Stop()
		}
		return nil, err
	}
	return members, nil
}

// wantVoters waits until that many servers elect the active one. A new one does not
// at first.
func (v *Vault) wantVoters(ctx context.Context, want int) error {
	var got int
	var last error // there may be no active server for a moment
	err := wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		got, last = v.voters(ctx)
		return last == nil && got == want, nil
	})
	if err != nil {
		return fmt.Errorf("wait for %d servers that elect, there are %d: %w", want, got, errors.Join(err, last))
	}
	return nil
}

// voters returns how many servers elect the active one.
func (v *Vault) voters(ctx context.Context) (int, error) {
	answer, err := v.Call(ctx, http.MethodGet, "sys/storage/raft/configuration", nil)
	if err != nil {
		return 0, err
	}
	var said struct {
		Data struct {
			Config struct {
				Servers []struct {
					Voter bool `json:"voter"`
				} `json:"servers"`
			} `json:"config"`
		} `json:"data"`
	}
	if err := json.Unmarshal(answer, &said); err != nil {
		return 0, fmt.Errorf("read the servers of Vault: %w", err)
	}
	voters := 0
	for _, server := range said.Data.Config.Servers {
		if server.Voter {
			voters++
		}
	}
	return voters, nil
}

// startMember starts one of several servers, as the first or to join the others.
func startMember(ctx context.Context, dir, host string, ca *authority, redirect bool, others []*Vault) (*Vault, error) {
	v, err := newVault(ctx, dir, host, ca)
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(ctx, 1)
	if err != nil {
		return nil, err
	}
	v.member = []string{
		"--node=" + filepath.Base(dir), "--cluster=" + net.JoinHostPort(host, strconv.Itoa(ports[0])),
		"--forward=" + strconv.FormatBool(!redirect),
	}
	if err := v.Start(ctx); err != nil {
		return nil, err
	}
	if len(others) == 0 {
		err = v.initialise(ctx)
		if err == nil {
			err = v.ask(ctx, ask{"sys/storage/raft/autopilot/configuration", map[string]any{"server_stabilization_time": "1s"}})
		}
	} else {
		err = v.join(ctx, others[0])
	}
	if err != nil {
		v.Stop()
		return nil, fmt.Errorf("initialise Vault: %w", err)
	}
	return v, nil
}

// join makes v one of the servers that other belongs to, with its data.
func (v *Vault) join(ctx context.Context, other *Vault) error {
	v.unsealKey, v.Token = other.unsealKey, other.Token
	if err := v.ask(ctx, ask{"sys/storage/raft/join", map[string]any{"leader_api_addr": other.Address, "leader_ca_cert": string(other.CA)}}); err != nil {
		return err
	}
	return v.unseal(ctx, "sys/health?standbyok=true")
}

// Active reports whether v is the one among several that answers, and not a standby.
func (v *Vault) Active(ctx context.Context) (bool, error) {
	answer, err := v.Call(ctx, http.MethodGet, "sys/leader", nil)
	if err != nil {
		return false, err
	}
	var said struct {
		Self bool `json:"is_self"`
	}
	err = json.Unmarshal(answer, &said)
	return said.Self, err
}
