package build

import (
	"context"

	"github.com/outrigger-mesh/outrigger/e2e/images/debian"
	"github.com/outrigger-mesh/outrigger/e2e/images/oci"
)

// databases is PostgreSQL and MariaDB, each with its client. /postgresql and
// /mariadb make an empty database, whose user "e2e" needs no password, and serve it.
func databases(ctx context.Context, b *builder) ([]oci.File, error) {
	tree, err := debian.Unpack(ctx, b.Arch, "postgresql", "mariadb-server-core", "mariadb-client-core")
	if err != nil {
		return nil, err
	}
	files, err := tree.Files([]string{
		"usr/lib/postgresql/*/bin/postgres", "usr/lib/postgresql/*/bin/initdb", "usr/lib/postgresql/*/bin/psql",
		"usr/lib/postgresql/*/lib/plpgsql.so", "usr/lib/postgresql/*/lib/dict_snowball.so",
		"usr/share/postgresql/*/*", "usr/share/zoneinfo/Etc/UTC",
		"usr/sbin/mariadbd", "usr/bin/mariadb",
		"usr/share/mysql/charsets", "usr/share/mysql/english", "usr/share/mysql/mysql_system_tables*.sql",
	}, nil)
	return append(files, names(), script("postgresql", `
cd /usr/lib/postgresql/*/bin
./initdb --pgdata=/tmp/postgresql --username=e2e --auth=trust --encoding=UTF8 --locale=C --no-sync >/dev/null
echo 'host all all all trust' >> /tmp/postgresql/pg_hba.conf
exec ./postgres -D /tmp/postgresql -k /tmp -h '*' -c fsync=off -c shared_buffers=16MB
`), script("psql", `
exec /usr/lib/postgresql/*/bin/psql "$@"
`), script("mariadb-server", `
mkdir -p /tmp/mariadb
set -- mariadbd --no-defaults --datadir=/tmp/mariadb --socket=/tmp/mariadb.sock --innodb-buffer-pool-size=8M --skip-log-bin
(
	printf '%s\n' 'CREATE DATABASE mysql;' 'USE mysql;' 'SET @auth_root_socket=NULL;'
	cat /usr/share/mysql/mysql_system_tables.sql /usr/share/mysql/mysql_system_tables_data.sql
	printf '%s\n' 'FLUSH PRIVILEGES;' "CREATE USER e2e@'%';" "GRANT ALL ON *.* TO e2e@'%';"
) | "$@" --bootstrap
exec "$@" --skip-name-resolve
`)), err
}

// zooKeeper is ZooKeeper with a Java runtime. /zookeeper serves what
// /tmp/zoo.cfg says; `/zookeeper status` asks the server of the same pod for its
// role, as zkServer.sh does.
func zooKeeper(ctx context.Context, b *builder) ([]oci.File, error) {
	tree, err := debian.Unpack(ctx, b.Arch, "libzookeeper-java", "default-jre-headless")
	if err != nil {
		return nil, err
	}
	patterns := []string{
		"etc/java-*-openjdk", "usr/share/java/zookeeper.jar", "usr/share/java/zookeeper-3*.jar",
	}
	for _, jar := range []string{
		"zookeeper-jute", "slf4j-api", "slf4j-simple", "netty-", "commons-cli", "commons-io", "snappy-java", "metrics-core",
		"jackson-", "findbugs-annotations",
	} {
		patterns = append(patterns, "usr/share/java/"+jar+"*.jar")
	}
	// Each library before those that need it.
	for _, file := range []string{
		"lib/server/libjvm.so", "lib/server/classes.jsa", "lib/libjli.so", "lib/libjimage.so", "lib/libjava.so", "lib/libverify.so",
		"lib/libzip.so", "lib/libnet.so", "lib/libnio.so", "lib/libextnet.so", "lib/libmanagement.so", "lib/libmanagement_ext.so",
		"lib/modules", "lib/jvm.cfg", "lib/tzdb.dat", "lib/security", "conf", "bin/java",
	} {
		patterns = append(patterns, "usr/lib/jvm/java-??-openjdk-*/"+file)
	}
	files, err := tree.Files(patterns, nil)
	return append(files, names(), script("zookeeper", `
java() { exec /usr/lib/jvm/java-*/bin/java -Xmx64m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp '/usr/share/java/*' "$@"; }
case "$1" in
status) java org.apache.zookeeper.client.FourLetterWordMain "${2:-localhost}" 2181 srvr ;;
*) java -Dzookeeper.admin.enableServer=false org.apache.zookeeper.server.quorum.QuorumPeerMain /tmp/zoo.cfg ;;
esac
`)), err
}

// names are the users of an image whose programs want to know who they are.
func names() oci.File {
	return text("etc/passwd", "root:x:0:0:root:/:/nonexistent\nnobody:x:65532:65532:nobody:/tmp:/nonexistent\n")
}

// script is a program for the shell of an image.
func script(name, body string) oci.File {
	return oci.File{Path: name, Data: []byte("#!/bin/sh\nset -e" + body), Mode: 0o755}
}
