BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('770bee3ae1dd');
CREATE TABLE assessments (
	assessment_id VARCHAR(50) NOT NULL, 
	trace_id VARCHAR(50) NOT NULL, 
	name VARCHAR(250) NOT NULL, 
	assessment_type VARCHAR(20) NOT NULL, 
	value TEXT NOT NULL, 
	error TEXT, 
	created_timestamp BIGINT NOT NULL, 
	last_updated_timestamp BIGINT NOT NULL, 
	source_type VARCHAR(50) NOT NULL, 
	source_id VARCHAR(250), 
	run_id VARCHAR(32), 
	span_id VARCHAR(50), 
	rationale TEXT, 
	overrides VARCHAR(50), 
	valid BOOLEAN NOT NULL, 
	assessment_metadata TEXT, 
	CONSTRAINT assessments_pk PRIMARY KEY (assessment_id), 
	CONSTRAINT fk_assessments_trace_id FOREIGN KEY(trace_id) REFERENCES trace_info (request_id) ON DELETE CASCADE
);
CREATE TABLE "datasets" (
	dataset_uuid VARCHAR(36) NOT NULL, 
	experiment_id INTEGER NOT NULL, 
	name VARCHAR(500) NOT NULL, 
	digest VARCHAR(36) NOT NULL, 
	dataset_source_type VARCHAR(36) NOT NULL, 
	dataset_source TEXT NOT NULL, 
	dataset_schema TEXT, 
	dataset_profile TEXT, 
	CONSTRAINT dataset_pk PRIMARY KEY (experiment_id, name, digest), 
	CONSTRAINT fk_datasets_experiment_id_experiments FOREIGN KEY(experiment_id) REFERENCES experiments (experiment_id) ON DELETE CASCADE
);
INSERT INTO "datasets" VALUES('6ebb4912ab5743d59f08970e4c565e6b',1,'prepare','263a21b0021a','local','{"uri": "/shop/artifacts/prepare"}',NULL,'{"rows/test": 130, "rows/train": 900}');
CREATE TABLE experiment_tags (
	"key" VARCHAR(250) NOT NULL, 
	value VARCHAR(5000), 
	experiment_id INTEGER NOT NULL, 
	CONSTRAINT experiment_tag_pk PRIMARY KEY ("key", experiment_id), 
	FOREIGN KEY(experiment_id) REFERENCES experiments (experiment_id)
);
CREATE TABLE experiments (
	experiment_id INTEGER NOT NULL, 
	name VARCHAR(256) NOT NULL, 
	artifact_location VARCHAR(256), 
	lifecycle_stage VARCHAR(32), creation_time BIGINT, last_update_time BIGINT, 
	CONSTRAINT experiment_pk PRIMARY KEY (experiment_id), 
	CONSTRAINT experiments_lifecycle_stage CHECK (lifecycle_stage IN ('active', 'deleted')), 
	UNIQUE (name)
);
INSERT INTO "experiments" VALUES(0,'Default','/shop/mlruns/0','active',1795967515809,1795967515809);
INSERT INTO "experiments" VALUES(1,'bank','file:///shop/artifacts/mlflow/files/bank','active',1795967515819,1795967515819);
CREATE TABLE input_tags (
	input_uuid VARCHAR(36) NOT NULL, 
	name VARCHAR(255) NOT NULL, 
	value VARCHAR(500) NOT NULL, 
	CONSTRAINT input_tags_pk PRIMARY KEY (input_uuid, name)
);
INSERT INTO "input_tags" VALUES('c2c08ada76c448f0a7bfdc65c9e27a4d','mlflow.data.context','training');
INSERT INTO "input_tags" VALUES('cb163011f6a04c5c811e9e6aa9c156c9','mlflow.data.context','training');
CREATE TABLE inputs (
	input_uuid VARCHAR(36) NOT NULL, 
	source_type VARCHAR(36) NOT NULL, 
	source_id VARCHAR(36) NOT NULL, 
	destination_type VARCHAR(36) NOT NULL, 
	destination_id VARCHAR(36) NOT NULL, step BIGINT DEFAULT '0' NOT NULL, 
	CONSTRAINT inputs_pk PRIMARY KEY (source_type, source_id, destination_type, destination_id)
);
INSERT INTO "inputs" VALUES('c2c08ada76c448f0a7bfdc65c9e27a4d','DATASET','6ebb4912ab5743d59f08970e4c565e6b','RUN','38b81e39fa0a46e2a15219cb8f66caf7',0);
INSERT INTO "inputs" VALUES('cb163011f6a04c5c811e9e6aa9c156c9','DATASET','6ebb4912ab5743d59f08970e4c565e6b','RUN','966ed8b6cf5d41b1b23a78b26063b752',0);
CREATE TABLE "latest_metrics" (
	"key" VARCHAR(250) NOT NULL, 
	value FLOAT NOT NULL, 
	timestamp BIGINT, 
	step BIGINT NOT NULL, 
	is_nan BOOLEAN NOT NULL, 
	run_uuid VARCHAR(32) NOT NULL, 
	CONSTRAINT latest_metric_pk PRIMARY KEY ("key", run_uuid), 
	FOREIGN KEY(run_uuid) REFERENCES runs (run_uuid), 
	CHECK (is_nan IN (0, 1))
);
INSERT INTO "latest_metrics" VALUES('train/loss',3.33333333333333328707e-02,1795967511593,29,0,'38b81e39fa0a46e2a15219cb8f66caf7');
INSERT INTO "latest_metrics" VALUES('stage/seconds',2.5,1795967511598,0,0,'38b81e39fa0a46e2a15219cb8f66caf7');
INSERT INTO "latest_metrics" VALUES('stage/peak_memory_gib',0.68359375,1795967511598,0,0,'38b81e39fa0a46e2a15219cb8f66caf7');
INSERT INTO "latest_metrics" VALUES('seconds/finetune',2.5,1795967511598,0,0,'966ed8b6cf5d41b1b23a78b26063b752');
INSERT INTO "latest_metrics" VALUES('peak_memory_gib/finetune',0.68359375,1795967511598,0,0,'966ed8b6cf5d41b1b23a78b26063b752');
INSERT INTO "latest_metrics" VALUES('exact_match',0.92,1795967512208,0,0,'23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "latest_metrics" VALUES('gate_passed',1.0,1795967512208,0,0,'23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "latest_metrics" VALUES('stage/seconds',2.5,1795967512208,0,0,'23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "latest_metrics" VALUES('stage/peak_memory_gib',0.68359375,1795967512208,0,0,'23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "latest_metrics" VALUES('register/exact_match',0.92,1795967512208,0,0,'966ed8b6cf5d41b1b23a78b26063b752');
INSERT INTO "latest_metrics" VALUES('register/gate_passed',1.0,1795967512208,0,0,'966ed8b6cf5d41b1b23a78b26063b752');
INSERT INTO "latest_metrics" VALUES('seconds/register',2.5,1795967512208,0,0,'966ed8b6cf5d41b1b23a78b26063b752');
INSERT INTO "latest_metrics" VALUES('peak_memory_gib/register',0.68359375,1795967512208,0,0,'966ed8b6cf5d41b1b23a78b26063b752');
INSERT INTO "latest_metrics" VALUES('benchmark/tokens_per_second/at_1',210.0,1795967516090,0,0,'23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "latest_metrics" VALUES('benchmark/tokens_per_second/at_16',3360.0,1795967516090,0,0,'23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "latest_metrics" VALUES('benchmark/tokens_per_second/at_4',840.0,1795967516090,0,0,'23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "latest_metrics" VALUES('exact_match/base',0.02,1795967516090,0,0,'23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "latest_metrics" VALUES('exact_match/fp8',0.92,1795967516090,0,0,'23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "latest_metrics" VALUES('exact_match/int4_awq',0.89,1795967516090,0,0,'23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "latest_metrics" VALUES('exact_match/int8_sq',0.915,1795967516090,0,0,'23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "latest_metrics" VALUES('exact_match/tuned',0.93,1795967516090,0,0,'23845fd0e4e34bbeba64e558cfa0e5d6');
CREATE TABLE logged_model_metrics (
	model_id VARCHAR(36) NOT NULL, 
	metric_name VARCHAR(500) NOT NULL, 
	metric_timestamp_ms BIGINT NOT NULL, 
	metric_step BIGINT NOT NULL, 
	metric_value FLOAT, 
	experiment_id INTEGER NOT NULL, 
	run_id VARCHAR(32) NOT NULL, 
	dataset_uuid VARCHAR(36), 
	dataset_name VARCHAR(500), 
	dataset_digest VARCHAR(36), 
	CONSTRAINT logged_model_metrics_pk PRIMARY KEY (model_id, metric_name, metric_timestamp_ms, metric_step, run_id), 
	CONSTRAINT fk_logged_model_metrics_experiment_id FOREIGN KEY(experiment_id) REFERENCES experiments (experiment_id), 
	CONSTRAINT fk_logged_model_metrics_model_id FOREIGN KEY(model_id) REFERENCES logged_models (model_id) ON DELETE CASCADE, 
	CONSTRAINT fk_logged_model_metrics_run_id FOREIGN KEY(run_id) REFERENCES runs (run_uuid) ON DELETE CASCADE
);
INSERT INTO "logged_model_metrics" VALUES('m-3a48d3a31a914024a66327ad4af5c38e','benchmark/tokens_per_second/at_1',1795967516090,0,210.0,0,'23845fd0e4e34bbeba64e558cfa0e5d6',NULL,NULL,NULL);
INSERT INTO "logged_model_metrics" VALUES('m-3a48d3a31a914024a66327ad4af5c38e','benchmark/tokens_per_second/at_16',1795967516090,0,3360.0,0,'23845fd0e4e34bbeba64e558cfa0e5d6',NULL,NULL,NULL);
INSERT INTO "logged_model_metrics" VALUES('m-3a48d3a31a914024a66327ad4af5c38e','benchmark/tokens_per_second/at_4',1795967516090,0,840.0,0,'23845fd0e4e34bbeba64e558cfa0e5d6',NULL,NULL,NULL);
INSERT INTO "logged_model_metrics" VALUES('m-3a48d3a31a914024a66327ad4af5c38e','exact_match/base',1795967516090,0,0.02,0,'23845fd0e4e34bbeba64e558cfa0e5d6',NULL,NULL,NULL);
INSERT INTO "logged_model_metrics" VALUES('m-3a48d3a31a914024a66327ad4af5c38e','exact_match/fp8',1795967516090,0,0.92,0,'23845fd0e4e34bbeba64e558cfa0e5d6',NULL,NULL,NULL);
INSERT INTO "logged_model_metrics" VALUES('m-3a48d3a31a914024a66327ad4af5c38e','exact_match/int4_awq',1795967516090,0,0.89,0,'23845fd0e4e34bbeba64e558cfa0e5d6',NULL,NULL,NULL);
INSERT INTO "logged_model_metrics" VALUES('m-3a48d3a31a914024a66327ad4af5c38e','exact_match/int8_sq',1795967516090,0,0.915,0,'23845fd0e4e34bbeba64e558cfa0e5d6',NULL,NULL,NULL);
INSERT INTO "logged_model_metrics" VALUES('m-3a48d3a31a914024a66327ad4af5c38e','exact_match/tuned',1795967516090,0,0.93,0,'23845fd0e4e34bbeba64e558cfa0e5d6',NULL,NULL,NULL);
CREATE TABLE logged_model_params (
	model_id VARCHAR(36) NOT NULL, 
	experiment_id INTEGER NOT NULL, 
	param_key VARCHAR(255) NOT NULL, 
	param_value TEXT NOT NULL, 
	CONSTRAINT logged_model_params_pk PRIMARY KEY (model_id, param_key), 
	CONSTRAINT fk_logged_model_params_experiment_id FOREIGN KEY(experiment_id) REFERENCES experiments (experiment_id), 
	CONSTRAINT fk_logged_model_params_model_id FOREIGN KEY(model_id) REFERENCES logged_models (model_id) ON DELETE CASCADE
);
INSERT INTO "logged_model_params" VALUES('m-3a48d3a31a914024a66327ad4af5c38e',1,'base','harbor-base');
INSERT INTO "logged_model_params" VALUES('m-3a48d3a31a914024a66327ad4af5c38e',1,'format','fp8');
INSERT INTO "logged_model_params" VALUES('m-3a48d3a31a914024a66327ad4af5c38e',1,'method','dora');
INSERT INTO "logged_model_params" VALUES('m-3a48d3a31a914024a66327ad4af5c38e',1,'seed','3');
CREATE TABLE logged_model_tags (
	model_id VARCHAR(36) NOT NULL, 
	experiment_id INTEGER NOT NULL, 
	tag_key VARCHAR(255) NOT NULL, 
	tag_value TEXT NOT NULL, 
	CONSTRAINT logged_model_tags_pk PRIMARY KEY (model_id, tag_key), 
	CONSTRAINT fk_logged_model_tags_experiment_id FOREIGN KEY(experiment_id) REFERENCES experiments (experiment_id), 
	CONSTRAINT fk_logged_model_tags_model_id FOREIGN KEY(model_id) REFERENCES logged_models (model_id) ON DELETE CASCADE
);
INSERT INTO "logged_model_tags" VALUES('m-3a48d3a31a914024a66327ad4af5c38e',1,'dataset','263a21b0021a9330e7dab32fb5d53d0dc302c57ac518eee9933cb19b7456976f');
INSERT INTO "logged_model_tags" VALUES('m-3a48d3a31a914024a66327ad4af5c38e',1,'digest.benchmark','8e5b856d173cec78ae61ab16b74ed4fb250a2cabdb88ad5ae5b70f885e951bce');
INSERT INTO "logged_model_tags" VALUES('m-3a48d3a31a914024a66327ad4af5c38e',1,'digest.build','bd54e145b70eaccc3aa1975cff5b34b0142176f5e0e94cf61f45ad832c268285');
INSERT INTO "logged_model_tags" VALUES('m-3a48d3a31a914024a66327ad4af5c38e',1,'digest.evaluate','502841f6a81f23e5e244e875ec4e4117540459543b24855955016c2f8c76a0b9');
INSERT INTO "logged_model_tags" VALUES('m-3a48d3a31a914024a66327ad4af5c38e',1,'digest.export','05ed045e577eb1a50c7664d7304143bdde5310da721612eaef822d51c615ca7a');
INSERT INTO "logged_model_tags" VALUES('m-3a48d3a31a914024a66327ad4af5c38e',1,'digest.finetune','f768328895d3bb771b36d7913b2227651cf26b46d18814f1a33e0023b6f7f46d');
INSERT INTO "logged_model_tags" VALUES('m-3a48d3a31a914024a66327ad4af5c38e',1,'digest.merge','ee2de1388744aab129fd28aa671e54d1b75302ff4b3e874d424e8a0b427ca314');
INSERT INTO "logged_model_tags" VALUES('m-3a48d3a31a914024a66327ad4af5c38e',1,'digest.prepare','263a21b0021a9330e7dab32fb5d53d0dc302c57ac518eee9933cb19b7456976f');
INSERT INTO "logged_model_tags" VALUES('m-3a48d3a31a914024a66327ad4af5c38e',1,'digest.quantize','6307b46bc862042d290f075e881b664482183ab6f90cd0f03a45fa2d726165aa');
INSERT INTO "logged_model_tags" VALUES('m-3a48d3a31a914024a66327ad4af5c38e',1,'exact_match','0.92');
INSERT INTO "logged_model_tags" VALUES('m-3a48d3a31a914024a66327ad4af5c38e',1,'format','fp8');
INSERT INTO "logged_model_tags" VALUES('m-3a48d3a31a914024a66327ad4af5c38e',1,'gate','passed');
CREATE TABLE logged_models (
	model_id VARCHAR(36) NOT NULL, 
	experiment_id INTEGER NOT NULL, 
	name VARCHAR(500) NOT NULL, 
	artifact_location VARCHAR(1000) NOT NULL, 
	creation_timestamp_ms BIGINT NOT NULL, 
	last_updated_timestamp_ms BIGINT NOT NULL, 
	status INTEGER NOT NULL, 
	lifecycle_stage VARCHAR(32), 
	model_type VARCHAR(500), 
	source_run_id VARCHAR(32), 
	status_message VARCHAR(1000), 
	CONSTRAINT logged_models_pk PRIMARY KEY (model_id), 
	CONSTRAINT logged_models_lifecycle_stage_check CHECK (lifecycle_stage IN ('active', 'deleted')), 
	CONSTRAINT fk_logged_models_experiment_id FOREIGN KEY(experiment_id) REFERENCES experiments (experiment_id) ON DELETE CASCADE
);
INSERT INTO "logged_models" VALUES('m-3a48d3a31a914024a66327ad4af5c38e',1,'bank-model','file:///shop/artifacts/mlflow/files/bank/models/m-3a48d3a31a914024a66327ad4af5c38e/artifacts',1795967516090,1795967516123,2,'active','chat','23845fd0e4e34bbeba64e558cfa0e5d6',NULL);
CREATE TABLE "metrics" (
	"key" VARCHAR(250) NOT NULL, 
	value FLOAT NOT NULL, 
	timestamp BIGINT NOT NULL, 
	run_uuid VARCHAR(32) NOT NULL, 
	step BIGINT DEFAULT '0' NOT NULL, 
	is_nan BOOLEAN DEFAULT '0' NOT NULL, 
	CONSTRAINT metric_pk PRIMARY KEY ("key", timestamp, step, run_uuid, value, is_nan), 
	FOREIGN KEY(run_uuid) REFERENCES runs (run_uuid), 
	CHECK (is_nan IN (0, 1))
);
INSERT INTO "metrics" VALUES('train/loss',1.0,1795967511591,'38b81e39fa0a46e2a15219cb8f66caf7',0,0);
INSERT INTO "metrics" VALUES('train/loss',0.5,1795967511591,'38b81e39fa0a46e2a15219cb8f66caf7',1,0);
INSERT INTO "metrics" VALUES('train/loss',3.33333333333333314829e-01,1795967511591,'38b81e39fa0a46e2a15219cb8f66caf7',2,0);
INSERT INTO "metrics" VALUES('train/loss',0.25,1795967511591,'38b81e39fa0a46e2a15219cb8f66caf7',3,0);
INSERT INTO "metrics" VALUES('train/loss',0.2,1795967511591,'38b81e39fa0a46e2a15219cb8f66caf7',4,0);
INSERT INTO "metrics" VALUES('train/loss',1.66666666666666657414e-01,1795967511591,'38b81e39fa0a46e2a15219cb8f66caf7',5,0);
INSERT INTO "metrics" VALUES('train/loss',1.42857142857142849212e-01,1795967511591,'38b81e39fa0a46e2a15219cb8f66caf7',6,0);
INSERT INTO "metrics" VALUES('train/loss',0.125,1795967511591,'38b81e39fa0a46e2a15219cb8f66caf7',7,0);
INSERT INTO "metrics" VALUES('train/loss',1.11111111111111104943e-01,1795967511591,'38b81e39fa0a46e2a15219cb8f66caf7',8,0);
INSERT INTO "metrics" VALUES('train/loss',0.1,1795967511592,'38b81e39fa0a46e2a15219cb8f66caf7',9,0);
INSERT INTO "metrics" VALUES('train/loss',9.09090909090909116141e-02,1795967511592,'38b81e39fa0a46e2a15219cb8f66caf7',10,0);
INSERT INTO "metrics" VALUES('train/loss',8.33333333333333287074e-02,1795967511592,'38b81e39fa0a46e2a15219cb8f66caf7',11,0);
INSERT INTO "metrics" VALUES('train/loss',7.6923076923076927347e-02,1795967511592,'38b81e39fa0a46e2a15219cb8f66caf7',12,0);
INSERT INTO "metrics" VALUES('train/loss',7.14285714285714246063e-02,1795967511592,'38b81e39fa0a46e2a15219cb8f66caf7',13,0);
INSERT INTO "metrics" VALUES('train/loss',6.66666666666666657414e-02,1795967511592,'38b81e39fa0a46e2a15219cb8f66caf7',14,0);
INSERT INTO "metrics" VALUES('train/loss',0.0625,1795967511592,'38b81e39fa0a46e2a15219cb8f66caf7',15,0);
INSERT INTO "metrics" VALUES('train/loss',5.8823529411764705066e-02,1795967511592,'38b81e39fa0a46e2a15219cb8f66caf7',16,0);
INSERT INTO "metrics" VALUES('train/loss',5.55555555555555524716e-02,1795967511592,'38b81e39fa0a46e2a15219cb8f66caf7',17,0);
INSERT INTO "metrics" VALUES('train/loss',5.26315789473684181309e-02,1795967511592,'38b81e39fa0a46e2a15219cb8f66caf7',18,0);
INSERT INTO "metrics" VALUES('train/loss',0.05,1795967511593,'38b81e39fa0a46e2a15219cb8f66caf7',19,0);
INSERT INTO "metrics" VALUES('train/loss',4.76190476190476164042e-02,1795967511593,'38b81e39fa0a46e2a15219cb8f66caf7',20,0);
INSERT INTO "metrics" VALUES('train/loss',4.5454545454545455807e-02,1795967511593,'38b81e39fa0a46e2a15219cb8f66caf7',21,0);
INSERT INTO "metrics" VALUES('train/loss',4.34782608695652161845e-02,1795967511593,'38b81e39fa0a46e2a15219cb8f66caf7',22,0);
INSERT INTO "metrics" VALUES('train/loss',4.16666666666666643537e-02,1795967511593,'38b81e39fa0a46e2a15219cb8f66caf7',23,0);
INSERT INTO "metrics" VALUES('train/loss',0.04,1795967511593,'38b81e39fa0a46e2a15219cb8f66caf7',24,0);
INSERT INTO "metrics" VALUES('train/loss',3.84615384615384636735e-02,1795967511593,'38b81e39fa0a46e2a15219cb8f66caf7',25,0);
INSERT INTO "metrics" VALUES('train/loss',3.7037037037037034981e-02,1795967511593,'38b81e39fa0a46e2a15219cb8f66caf7',26,0);
INSERT INTO "metrics" VALUES('train/loss',3.57142857142857123031e-02,1795967511593,'38b81e39fa0a46e2a15219cb8f66caf7',27,0);
INSERT INTO "metrics" VALUES('train/loss',3.44827586206896546938e-02,1795967511593,'38b81e39fa0a46e2a15219cb8f66caf7',28,0);
INSERT INTO "metrics" VALUES('train/loss',3.33333333333333328707e-02,1795967511593,'38b81e39fa0a46e2a15219cb8f66caf7',29,0);
INSERT INTO "metrics" VALUES('stage/seconds',2.5,1795967511598,'38b81e39fa0a46e2a15219cb8f66caf7',0,0);
INSERT INTO "metrics" VALUES('stage/peak_memory_gib',0.68359375,1795967511598,'38b81e39fa0a46e2a15219cb8f66caf7',0,0);
INSERT INTO "metrics" VALUES('seconds/finetune',2.5,1795967511598,'966ed8b6cf5d41b1b23a78b26063b752',0,0);
INSERT INTO "metrics" VALUES('peak_memory_gib/finetune',0.68359375,1795967511598,'966ed8b6cf5d41b1b23a78b26063b752',0,0);
INSERT INTO "metrics" VALUES('exact_match',0.92,1795967512208,'23845fd0e4e34bbeba64e558cfa0e5d6',0,0);
INSERT INTO "metrics" VALUES('gate_passed',1.0,1795967512208,'23845fd0e4e34bbeba64e558cfa0e5d6',0,0);
INSERT INTO "metrics" VALUES('stage/seconds',2.5,1795967512208,'23845fd0e4e34bbeba64e558cfa0e5d6',0,0);
INSERT INTO "metrics" VALUES('stage/peak_memory_gib',0.68359375,1795967512208,'23845fd0e4e34bbeba64e558cfa0e5d6',0,0);
INSERT INTO "metrics" VALUES('register/exact_match',0.92,1795967512208,'966ed8b6cf5d41b1b23a78b26063b752',0,0);
INSERT INTO "metrics" VALUES('register/gate_passed',1.0,1795967512208,'966ed8b6cf5d41b1b23a78b26063b752',0,0);
INSERT INTO "metrics" VALUES('seconds/register',2.5,1795967512208,'966ed8b6cf5d41b1b23a78b26063b752',0,0);
INSERT INTO "metrics" VALUES('peak_memory_gib/register',0.68359375,1795967512208,'966ed8b6cf5d41b1b23a78b26063b752',0,0);
INSERT INTO "metrics" VALUES('benchmark/tokens_per_second/at_1',210.0,1795967516090,'23845fd0e4e34bbeba64e558cfa0e5d6',0,0);
INSERT INTO "metrics" VALUES('benchmark/tokens_per_second/at_16',3360.0,1795967516090,'23845fd0e4e34bbeba64e558cfa0e5d6',0,0);
INSERT INTO "metrics" VALUES('benchmark/tokens_per_second/at_4',840.0,1795967516090,'23845fd0e4e34bbeba64e558cfa0e5d6',0,0);
INSERT INTO "metrics" VALUES('exact_match/base',0.02,1795967516090,'23845fd0e4e34bbeba64e558cfa0e5d6',0,0);
INSERT INTO "metrics" VALUES('exact_match/fp8',0.92,1795967516090,'23845fd0e4e34bbeba64e558cfa0e5d6',0,0);
INSERT INTO "metrics" VALUES('exact_match/int4_awq',0.89,1795967516090,'23845fd0e4e34bbeba64e558cfa0e5d6',0,0);
INSERT INTO "metrics" VALUES('exact_match/int8_sq',0.915,1795967516090,'23845fd0e4e34bbeba64e558cfa0e5d6',0,0);
INSERT INTO "metrics" VALUES('exact_match/tuned',0.93,1795967516090,'23845fd0e4e34bbeba64e558cfa0e5d6',0,0);
CREATE TABLE "model_version_tags" (
	"key" VARCHAR(250) NOT NULL, 
	value TEXT, 
	name VARCHAR(256) NOT NULL, 
	version INTEGER NOT NULL, 
	CONSTRAINT model_version_tag_pk PRIMARY KEY ("key", name, version), 
	FOREIGN KEY(name, version) REFERENCES model_versions (name, version) ON UPDATE CASCADE
);
INSERT INTO "model_version_tags" VALUES('dataset','263a21b0021a9330e7dab32fb5d53d0dc302c57ac518eee9933cb19b7456976f','bank-model',1);
INSERT INTO "model_version_tags" VALUES('digest.benchmark','8e5b856d173cec78ae61ab16b74ed4fb250a2cabdb88ad5ae5b70f885e951bce','bank-model',1);
INSERT INTO "model_version_tags" VALUES('digest.build','bd54e145b70eaccc3aa1975cff5b34b0142176f5e0e94cf61f45ad832c268285','bank-model',1);
INSERT INTO "model_version_tags" VALUES('digest.evaluate','502841f6a81f23e5e244e875ec4e4117540459543b24855955016c2f8c76a0b9','bank-model',1);
INSERT INTO "model_version_tags" VALUES('digest.export','05ed045e577eb1a50c7664d7304143bdde5310da721612eaef822d51c615ca7a','bank-model',1);
INSERT INTO "model_version_tags" VALUES('digest.finetune','f768328895d3bb771b36d7913b2227651cf26b46d18814f1a33e0023b6f7f46d','bank-model',1);
INSERT INTO "model_version_tags" VALUES('digest.merge','ee2de1388744aab129fd28aa671e54d1b75302ff4b3e874d424e8a0b427ca314','bank-model',1);
INSERT INTO "model_version_tags" VALUES('digest.prepare','263a21b0021a9330e7dab32fb5d53d0dc302c57ac518eee9933cb19b7456976f','bank-model',1);
INSERT INTO "model_version_tags" VALUES('digest.quantize','6307b46bc862042d290f075e881b664482183ab6f90cd0f03a45fa2d726165aa','bank-model',1);
INSERT INTO "model_version_tags" VALUES('exact_match','0.92','bank-model',1);
INSERT INTO "model_version_tags" VALUES('format','fp8','bank-model',1);
INSERT INTO "model_version_tags" VALUES('gate','passed','bank-model',1);
INSERT INTO "model_version_tags" VALUES('champion','92.0% exact match, the gate passed, and there was no champion','bank-model',1);
CREATE TABLE "model_versions" (
	name VARCHAR(256) NOT NULL, 
	version INTEGER NOT NULL, 
	creation_time BIGINT, 
	last_updated_time BIGINT, 
	description VARCHAR(5000), 
	user_id VARCHAR(256), 
	current_stage VARCHAR(20), 
	source VARCHAR(500), 
	run_id VARCHAR(32), 
	status VARCHAR(20), 
	status_message VARCHAR(500), 
	run_link VARCHAR(500), storage_location VARCHAR(500), 
	CONSTRAINT model_version_pk PRIMARY KEY (name, version), 
	FOREIGN KEY(name) REFERENCES registered_models (name) ON UPDATE CASCADE
);
INSERT INTO "model_versions" VALUES('bank-model',1,1795967516718,1795967516718,'# bank-model

harbor-base tuned by DoRA on data/harbor, shipped as **fp8**. Gate: **passed**.

| model | exact match | 95 % interval |
|---|--:|--:|
| base | 2.0% | 0.0% to 4.0% |
| tuned | 93.0% | 91.0% to 95.0% |
| **fp8** | **92.0%** | 90.0% to 94.0% |
| int8_sq | 91.5% | 89.5% to 93.5% |
| int4_awq | 89.0% | 87.0% to 91.0% |

Measured on held-out questions whose phrasings training never saw.

- Training: 7 steps of 16 conversations, learning rate 0.002, seed 3
- Code: c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeeabcd

| artifact | MiB | sha256 | where |
|---|--:|---|---|
| prepare (dataset) | 0.0 | `263a21b0021a` | `/shop/artifacts/prepare` |
| finetune (nemo_adapter) | 0.0 | `f768328895d3` | `/shop/artifacts/finetune` |
| merge (hf_checkpoint) | 0.0 | `ee2de1388744` | `/shop/artifacts/merge` |
| quantize (quantized) | 0.0 | `6307b46bc862` | `/shop/artifacts/quantize` |
| evaluate (report) | 0.0 | `502841f6a81f` | `/shop/artifacts/evaluate` |
| export (exported) | 0.0 | `05ed045e577e` | `/shop/artifacts/export` |
| build (engine) | 3.8 | `bd54e145b70e` | `/shop/artifacts/build` |
| benchmark (benchmark) | 0.0 | `8e5b856d173c` | `/shop/artifacts/benchmark` |
',NULL,'None','models:/m-3a48d3a31a914024a66327ad4af5c38e','23845fd0e4e34bbeba64e558cfa0e5d6','READY',NULL,NULL,'file:///shop/artifacts/mlflow/files/bank/models/m-3a48d3a31a914024a66327ad4af5c38e/artifacts');
CREATE TABLE "params" (
	"key" VARCHAR(250) NOT NULL, 
	value VARCHAR(8000) NOT NULL, 
	run_uuid VARCHAR(32) NOT NULL, 
	CONSTRAINT param_pk PRIMARY KEY ("key", run_uuid), 
	FOREIGN KEY(run_uuid) REFERENCES runs (run_uuid)
);
INSERT INTO "params" VALUES('seed','1','38b81e39fa0a46e2a15219cb8f66caf7');
INSERT INTO "params" VALUES('finetune.x','2','38b81e39fa0a46e2a15219cb8f66caf7');
INSERT INTO "params" VALUES('seed','1','966ed8b6cf5d41b1b23a78b26063b752');
INSERT INTO "params" VALUES('finetune.x','2','966ed8b6cf5d41b1b23a78b26063b752');
CREATE TABLE registered_model_aliases (
	alias VARCHAR(256) NOT NULL, 
	version INTEGER NOT NULL, 
	name VARCHAR(256) NOT NULL, 
	CONSTRAINT registered_model_alias_pk PRIMARY KEY (name, alias), 
	CONSTRAINT registered_model_alias_name_fkey FOREIGN KEY(name) REFERENCES registered_models (name) ON DELETE cascade ON UPDATE cascade
);
INSERT INTO "registered_model_aliases" VALUES('candidate',1,'bank-model');
INSERT INTO "registered_model_aliases" VALUES('champion',1,'bank-model');
CREATE TABLE registered_model_tags (
	"key" VARCHAR(250) NOT NULL, 
	value VARCHAR(5000), 
	name VARCHAR(256) NOT NULL, 
	CONSTRAINT registered_model_tag_pk PRIMARY KEY ("key", name), 
	FOREIGN KEY(name) REFERENCES registered_models (name) ON UPDATE cascade
);
CREATE TABLE registered_models (
	name VARCHAR(256) NOT NULL, 
	creation_time BIGINT, 
	last_updated_time BIGINT, 
	description VARCHAR(5000), 
	CONSTRAINT registered_model_pk PRIMARY KEY (name), 
	UNIQUE (name)
);
INSERT INTO "registered_models" VALUES('bank-model',1795967516688,1795967516783,'# bank-model

harbor-base tuned by DoRA on data/harbor, shipped as **fp8**. Gate: **passed**.

| model | exact match | 95 % interval |
|---|--:|--:|
| base | 2.0% | 0.0% to 4.0% |
| tuned | 93.0% | 91.0% to 95.0% |
| **fp8** | **92.0%** | 90.0% to 94.0% |
| int8_sq | 91.5% | 89.5% to 93.5% |
| int4_awq | 89.0% | 87.0% to 91.0% |

Measured on held-out questions whose phrasings training never saw.

- Training: 7 steps of 16 conversations, learning rate 0.002, seed 3
- Code: c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeeabcd

| artifact | MiB | sha256 | where |
|---|--:|---|---|
| prepare (dataset) | 0.0 | `263a21b0021a` | `/shop/artifacts/prepare` |
| finetune (nemo_adapter) | 0.0 | `f768328895d3` | `/shop/artifacts/finetune` |
| merge (hf_checkpoint) | 0.0 | `ee2de1388744` | `/shop/artifacts/merge` |
| quantize (quantized) | 0.0 | `6307b46bc862` | `/shop/artifacts/quantize` |
| evaluate (report) | 0.0 | `502841f6a81f` | `/shop/artifacts/evaluate` |
| export (exported) | 0.0 | `05ed045e577e` | `/shop/artifacts/export` |
| build (engine) | 3.8 | `bd54e145b70e` | `/shop/artifacts/build` |
| benchmark (benchmark) | 0.0 | `8e5b856d173c` | `/shop/artifacts/benchmark` |
');
CREATE TABLE "runs" (
	run_uuid VARCHAR(32) NOT NULL, 
	name VARCHAR(250), 
	source_type VARCHAR(20), 
	source_name VARCHAR(500), 
	entry_point_name VARCHAR(50), 
	user_id VARCHAR(256), 
	status VARCHAR(9), 
	start_time BIGINT, 
	end_time BIGINT, 
	source_version VARCHAR(50), 
	lifecycle_stage VARCHAR(20), 
	artifact_uri VARCHAR(200), 
	experiment_id INTEGER, deleted_time BIGINT, 
	CONSTRAINT run_pk PRIMARY KEY (run_uuid), 
	CONSTRAINT source_type CHECK (source_type IN ('NOTEBOOK', 'JOB', 'LOCAL', 'UNKNOWN', 'PROJECT')), 
	CONSTRAINT runs_lifecycle_stage CHECK (lifecycle_stage IN ('active', 'deleted')), 
	FOREIGN KEY(experiment_id) REFERENCES experiments (experiment_id), 
	CHECK (status IN ('SCHEDULED', 'FAILED', 'FINISHED', 'RUNNING', 'KILLED'))
);
INSERT INTO "runs" VALUES('966ed8b6cf5d41b1b23a78b26063b752','2026-11-29 15:51:51','UNKNOWN','','','ada','FINISHED',1795967511588,1795967512208,'','active','file:///shop/artifacts/mlflow/files/bank/966ed8b6cf5d41b1b23a78b26063b752/artifacts',1,NULL);
INSERT INTO "runs" VALUES('38b81e39fa0a46e2a15219cb8f66caf7','finetune','UNKNOWN','','','ada','FINISHED',1795967511590,1795967511598,'','active','file:///shop/artifacts/mlflow/files/bank/38b81e39fa0a46e2a15219cb8f66caf7/artifacts',1,NULL);
INSERT INTO "runs" VALUES('23845fd0e4e34bbeba64e558cfa0e5d6','register','UNKNOWN','','','ada','FINISHED',1795967512197,1795967512208,'','active','file:///shop/artifacts/mlflow/files/bank/23845fd0e4e34bbeba64e558cfa0e5d6/artifacts',1,NULL);
CREATE TABLE "tags" (
	"key" VARCHAR(250) NOT NULL, 
	value VARCHAR(8000), 
	run_uuid VARCHAR(32) NOT NULL, 
	CONSTRAINT tag_pk PRIMARY KEY ("key", run_uuid), 
	FOREIGN KEY(run_uuid) REFERENCES runs (run_uuid)
);
INSERT INTO "tags" VALUES('mlflow.pipeline.run','f5f26428','966ed8b6cf5d41b1b23a78b26063b752');
INSERT INTO "tags" VALUES('mlflow.user','ada','966ed8b6cf5d41b1b23a78b26063b752');
INSERT INTO "tags" VALUES('mlflow.source.name','python -m pipeline','966ed8b6cf5d41b1b23a78b26063b752');
INSERT INTO "tags" VALUES('mlflow.source.type','LOCAL','966ed8b6cf5d41b1b23a78b26063b752');
INSERT INTO "tags" VALUES('mlflow.runName','2026-11-29 15:51:51','966ed8b6cf5d41b1b23a78b26063b752');
INSERT INTO "tags" VALUES('mlflow.pipeline.run','1795967511589-5275-finetune-f5f26428','38b81e39fa0a46e2a15219cb8f66caf7');
INSERT INTO "tags" VALUES('mlflow.parentRunId','966ed8b6cf5d41b1b23a78b26063b752','38b81e39fa0a46e2a15219cb8f66caf7');
INSERT INTO "tags" VALUES('mlflow.pipeline.stage','finetune','38b81e39fa0a46e2a15219cb8f66caf7');
INSERT INTO "tags" VALUES('mlflow.user','ada','38b81e39fa0a46e2a15219cb8f66caf7');
INSERT INTO "tags" VALUES('mlflow.source.name','python -m pipeline','38b81e39fa0a46e2a15219cb8f66caf7');
INSERT INTO "tags" VALUES('mlflow.source.type','LOCAL','38b81e39fa0a46e2a15219cb8f66caf7');
INSERT INTO "tags" VALUES('mlflow.runName','finetune','38b81e39fa0a46e2a15219cb8f66caf7');
INSERT INTO "tags" VALUES('input.prepare','263a21b0021a /shop/artifacts/prepare','38b81e39fa0a46e2a15219cb8f66caf7');
INSERT INTO "tags" VALUES('mlflow.source.git.commit','c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeeabcd','966ed8b6cf5d41b1b23a78b26063b752');
INSERT INTO "tags" VALUES('artifact.kind','nemo_adapter','38b81e39fa0a46e2a15219cb8f66caf7');
INSERT INTO "tags" VALUES('artifact.path','/shop/artifacts/finetune','38b81e39fa0a46e2a15219cb8f66caf7');
INSERT INTO "tags" VALUES('artifact.digest','781c3a8fbfc3f5bc56ef0a615e4f16ed630190bb6164057cf088f0c32653e73b','38b81e39fa0a46e2a15219cb8f66caf7');
INSERT INTO "tags" VALUES('artifact.mib','0.00','38b81e39fa0a46e2a15219cb8f66caf7');
INSERT INTO "tags" VALUES('mlflow.source.git.commit','c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeeabcd','38b81e39fa0a46e2a15219cb8f66caf7');
INSERT INTO "tags" VALUES('mlflow.note.content','nemo_adapter, made by this run: `/shop/artifacts/finetune` (sha256 `781c3a8fbfc3`)','38b81e39fa0a46e2a15219cb8f66caf7');
INSERT INTO "tags" VALUES('mlflow.pipeline.run','1795967512197-5275-register-f5f26428','23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "tags" VALUES('mlflow.parentRunId','966ed8b6cf5d41b1b23a78b26063b752','23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "tags" VALUES('mlflow.pipeline.stage','register','23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "tags" VALUES('mlflow.user','ada','23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "tags" VALUES('mlflow.source.name','python -m pipeline','23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "tags" VALUES('mlflow.source.type','LOCAL','23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "tags" VALUES('mlflow.runName','register','23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "tags" VALUES('artifact.kind','registration','23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "tags" VALUES('artifact.path','/shop/artifacts/register','23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "tags" VALUES('artifact.digest','b5ffa937a8ec7086643e5d7cb495d53b7793e9661ec3667d3cbde398a1badeb8','23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "tags" VALUES('artifact.mib','0.00','23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "tags" VALUES('mlflow.source.git.commit','c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeeabcd','23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "tags" VALUES('mlflow.note.content','registration, made by this run: `/shop/artifacts/register` (sha256 `b5ffa937a8ec`)','23845fd0e4e34bbeba64e558cfa0e5d6');
INSERT INTO "tags" VALUES('mlflow.note.content','Registered as [bank-model version 1](#/models/bank-model/versions/1), candidate and champion: 92.0% exact match, the gate passed, and there was no champion

| stage | seconds | |
|---|--:|---|
| [finetune](#/experiments/1/runs/38b81e39fa0a46e2a15219cb8f66caf7)   | 2.5   | train/loss 0.03333 |
| [register](#/experiments/1/runs/23845fd0e4e34bbeba64e558cfa0e5d6)   | 2.5   | exact_match 0.92, gate_passed 1 |','966ed8b6cf5d41b1b23a78b26063b752');
CREATE TABLE trace_info (
	request_id VARCHAR(50) NOT NULL, 
	experiment_id INTEGER NOT NULL, 
	timestamp_ms BIGINT NOT NULL, 
	execution_time_ms BIGINT, 
	status VARCHAR(50) NOT NULL, client_request_id VARCHAR(50), request_preview VARCHAR(1000), response_preview VARCHAR(1000), 
	CONSTRAINT trace_info_pk PRIMARY KEY (request_id), 
	CONSTRAINT fk_trace_info_experiment_id FOREIGN KEY(experiment_id) REFERENCES experiments (experiment_id)
);
CREATE TABLE "trace_request_metadata" (
	"key" VARCHAR(250) NOT NULL, 
	value VARCHAR(8000), 
	request_id VARCHAR(50) NOT NULL, 
	CONSTRAINT trace_request_metadata_pk PRIMARY KEY ("key", request_id), 
	CONSTRAINT fk_trace_request_metadata_request_id FOREIGN KEY(request_id) REFERENCES trace_info (request_id) ON DELETE CASCADE
);
CREATE TABLE "trace_tags" (
	"key" VARCHAR(250) NOT NULL, 
	value VARCHAR(8000), 
	request_id VARCHAR(50) NOT NULL, 
	CONSTRAINT trace_tag_pk PRIMARY KEY ("key", request_id), 
	CONSTRAINT fk_trace_tags_request_id FOREIGN KEY(request_id) REFERENCES trace_info (request_id) ON DELETE CASCADE
);
CREATE INDEX index_metrics_run_uuid ON metrics (run_uuid);
CREATE INDEX index_latest_metrics_run_uuid ON latest_metrics (run_uuid);
CREATE INDEX index_inputs_destination_type_destination_id_source_type ON inputs (destination_type, destination_id, source_type);
CREATE INDEX index_inputs_input_uuid ON inputs (input_uuid);
CREATE INDEX index_params_run_uuid ON params (run_uuid);
CREATE INDEX index_trace_info_experiment_id_timestamp_ms ON trace_info (experiment_id, timestamp_ms);
CREATE INDEX index_trace_tags_request_id ON trace_tags (request_id);
CREATE INDEX index_trace_request_metadata_request_id ON trace_request_metadata (request_id);
CREATE INDEX index_tags_run_uuid ON tags (run_uuid);
CREATE INDEX index_datasets_dataset_uuid ON datasets (dataset_uuid);
CREATE INDEX index_datasets_experiment_id_dataset_source_type ON datasets (experiment_id, dataset_source_type);
CREATE INDEX index_logged_model_metrics_model_id ON logged_model_metrics (model_id);
CREATE INDEX index_assessments_trace_id_created_timestamp ON assessments (trace_id, created_timestamp);
CREATE INDEX index_assessments_run_id_created_timestamp ON assessments (run_id, created_timestamp);
CREATE INDEX index_assessments_last_updated_timestamp ON assessments (last_updated_timestamp);
CREATE INDEX index_assessments_assessment_type ON assessments (assessment_type);
COMMIT;