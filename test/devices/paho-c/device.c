/* A device of paho C (libpaho-mqtt3c), MQTT 3.1.1. Its environment is that of
   ../mosquitto.sh, and so is its life, except that it fetches nothing: hello,
   update, progress, reboot, hello, a reboot by command, hello. */

#define _POSIX_C_SOURCE 199309L
#include <MQTTClient.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *id;
static int foreign, patience = 60; /* seconds for anything that has to happen */
static char uuid[80], version[80];
static MQTTClient client;

static void die(const char *what, int rc) {
	fprintf(stderr, "device: %s (%d)\n", what, rc);
	exit(1);
}

static const char *env(const char *name) {
	const char *value = getenv(name);
	if (!value) die(name, 0);
	return value;
}

/* say publishes at QoS 1 and waits for PUBACK. */
static void say(const char *name, int retain, const char *format, ...) {
	char topic[160], payload[512];
	va_list args;
	va_start(args, format);
	int n = vsnprintf(payload, sizeof payload, format, args);
	va_end(args);
	snprintf(topic, sizeof topic, "nh/%s/up/%s", id, name);
	MQTTClient_deliveryToken token;
	int rc = MQTTClient_publish(client, topic, n, payload, 1, retain, &token);
	if (rc == MQTTCLIENT_SUCCESS) rc = MQTTClient_waitForCompletion(client, token, patience * 1000UL);
	if (rc != MQTTCLIENT_SUCCESS) die(name, rc);
	printf("say %s %s\n", name, payload);
}

/* await waits for a message on down/NAME that begins with the text, or on
   nh/gateway for the name "", and copies its payload. No text
   to begin with wants no payload. */
static void await(const char *name, const char *begins, char *payload, size_t size) {
	char want[160];
	if (*name) snprintf(want, sizeof want, "nh/%s/down/%s", id, name);
	else snprintf(want, sizeof want, "nh/gateway");
	time_t end = time(NULL) + patience;
	while (time(NULL) < end) {
		char *topic = NULL;
		int length = 0;
		MQTTClient_message *m = NULL;
		int rc = MQTTClient_receive(client, &topic, &length, &m, 500);
		if (rc != MQTTCLIENT_SUCCESS && rc != MQTTCLIENT_TOPICNAME_TRUNCATED) die("the connection is lost", rc);
		if (!m) continue;
		snprintf(payload, size, "%.*s", m->payloadlen, (char *)m->payload);
		printf("hear %d %s %s\n", m->retained, topic, payload);
		int command = strcmp(want, topic) == 0 && *name && strcmp(name, "link") != 0;
		if (command && m->retained) die("what must not be retained is", 0);
		int error = strstr(topic, "/down/error") != NULL;
		int found = strcmp(want, topic) == 0 && (*begins ? strncmp(payload, begins, strlen(begins)) == 0 : m->payloadlen == 0);
		MQTTClient_freeMessage(&m);
		MQTTClient_free(topic);
		if (error) die("the gateway refused something", 0);
		if (found) return;
	}
	die(want, 0);
}

static void boot(int validated) {
	char uri[160], topic[160], ignored[8192];
	snprintf(uri, sizeof uri, "tcp://%s:%s", env("HOST"), env("PORT"));
	int rc = MQTTClient_create(&client, uri, id, MQTTCLIENT_PERSISTENCE_NONE, NULL);
	if (rc != MQTTCLIENT_SUCCESS) die("create", rc);
	MQTTClient_connectOptions options = MQTTClient_connectOptions_initializer;
	MQTTClient_willOptions will = MQTTClient_willOptions_initializer;
	options.MQTTVersion = MQTTVERSION_3_1_1;
	options.cleansession = 1;
	options.username = id;
	options.keepAliveInterval = 20;
	snprintf(topic, sizeof topic, "nh/%s/up/online", id);
	will.topicName = topic;
	will.message = "0";
	will.qos = 1;
	will.retained = 1;
	if (foreign) options.will = &will;
	if ((rc = MQTTClient_connect(client, &options)) != MQTTCLIENT_SUCCESS) die("connect", rc);
	char down[160];
	snprintf(down, sizeof down, "nh/%s/down/#", id);
	if ((rc = MQTTClient_subscribe(client, down, 1)) != MQTTCLIENT_SUCCESS) die("subscribe", rc);
	if ((rc = MQTTClient_subscribe(client, "nh/gateway", 1)) != MQTTCLIENT_SUCCESS) die("subscribe", rc);
	await("", "{\"state\":\"online\"", ignored, sizeof ignored);
	if (foreign) say("online", 1, "1");
	say("hello", 0, "{\"v\":1,\"version\":\"%s\",\"uuid\":\"%s\",\"product\":\"%s\",\"platform\":\"%s\",\"architecture\":\"%s\",\"validated\":%s}",
	    version, uuid, env("PRODUCT"), env("PLATFORM"), env("ARCHITECTURE"), validated ? "true" : "false");
}

/* off is an orderly end: DISCONNECT keeps the will back. */
static void off(void) {
	if (foreign) say("online", 1, "0");
	MQTTClient_disconnect(client, 1000);
	MQTTClient_destroy(&client);
}

/* flash is what the flash needs for a part of the image. */
static void flash(void) {
	struct timespec part = {0, 400 * 1000 * 1000};
	nanosleep(&part, NULL);
}

/* field copies the string behind "name":" that follows from. */
static void field(const char *from, const char *name, char *out, size_t size) {
	char key[40];
	snprintf(key, sizeof key, "\"%s\":\"", name);
	const char *begin = from ? strstr(from, key) : NULL;
	if (!begin) die(name, 0);
	begin += strlen(key);
	snprintf(out, size, "%.*s", (int)strcspn(begin, "\""), begin);
}

int main(void) {
	char payload[8192];
	setvbuf(stdout, NULL, _IOLBF, 0);
	id = env("ID");
	foreign = getenv("FOREIGN") && strcmp(getenv("FOREIGN"), "1") == 0;
	if (getenv("PATIENCE")) patience = atoi(getenv("PATIENCE"));
	snprintf(uuid, sizeof uuid, "%s", env("UUID"));
	snprintf(version, sizeof version, "%s", env("VERSION"));

	boot(1);
	await("link", "up", payload, sizeof payload);
	puts("ready");
	await("update", "{", payload, sizeof payload);
	const char *meta = strstr(payload, "\"firmware_meta\"");
	say("status", 0, "started");
	say("progress", 0, "10");
	flash();
	say("progress", 0, "{\"value\":60,\"stage\":\"updating\"}");
	flash();
	say("progress", 0, "100");
	flash();
	say("status", 0, "completed");
	say("rebooting", 0, "%s", "");
	off();

	field(meta, "uuid", uuid, sizeof uuid);
	field(meta, "version", version, sizeof version);
	boot(0);
	await("update", "", payload, sizeof payload);
	say("validated", 0, "%s", "");
	await("reboot", "{\"ref\":", payload, sizeof payload);
	say("rebooting", 0, "%s", "");
	off();
	boot(1);
	await("update", "", payload, sizeof payload);
	off();
	return 0;
}
